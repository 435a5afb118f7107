"""What quantized layers were to reach on a processor with AVX-512 and VNNI, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segquant import PRECISIONS


@dataclass(frozen=True)
class Row:
    """A way to run a subject. Milliseconds; times as fast as float32 eager; relative error of the output against
    float32; bytes that the quantized layers hold per weight, after a call, biases left out."""

    subject: str
    precision: str
    form: str
    engine: str
    run: str
    milliseconds: float
    speed: float
    error: float
    bytes: float


@dataclass(frozen=True)
class Bar:
    """A ratio of speeds that is to be reached."""

    what: str
    wanted: float
    subject: str
    best: tuple[str, ...]
    against: tuple[str, ...]


_FLOAT, _HALF = ("float32", "torch", "eager"), ("bfloat16", "torch")
_ZERO_POINT, _TWO = ("w8a8", "zero_point", "cpu"), ("w8a8", "dual", "cpu")
BARS = (
    Bar("int8 compiled over float32 eager", 1.9, "emoji_sd3", ("w8a8", "cpu", "compiled"), _FLOAT),
    Bar("int8 compiled over bfloat16", 1.12, "emoji_sd3", ("w8a8", "cpu", "compiled"), (*_HALF, "compiled")),
    Bar("int8 over float32 eager", 2.5, "sd35_block", ("w8a8", "cpu"), _FLOAT),
    Bar("int8 over bfloat16", 1.4, "sd35_block", ("w8a8", "cpu"), _HALF),
    Bar("attention in codes over torch's", 1.2, "sd35_block", ("w8a8", "cpu, attention int8"), ("w8a8", "cpu")),
    Bar("zero point over two products", 1.12, "emoji_sd3", _ZERO_POINT, _TWO),
    Bar("zero point over two products", 1.12, "sd35_block", _ZERO_POINT, _TWO),
    Bar("convolution over float32 eager", 3.5, "conv_320", ("w8a8", "cpu"), _FLOAT),
    Bar("convolution over float32 eager", 3.5, "conv_640", ("w8a8", "cpu"), _FLOAT),
)  # fmt: skip


Found = tuple[str, float, float | None]
"""What was to be reached, how much, and what is; None: not measured."""


def bars(rows: Sequence[Row]) -> list[Found]:
    """What was to be reached, and what is: of the bars whose subject was measured."""
    found: list[Found] = []
    subjects = {row.subject for row in rows}
    for bar in BARS:
        if bar.subject in subjects:
            best, against = (_fastest(rows, bar.subject, names) for names in (bar.best, bar.against))
            found.append((f"{bar.subject}: {bar.what}", bar.wanted, best / against if best and against else None))
    for row in _as_it_runs(rows):
        label = f"{row.subject} {row.precision} {row.form} {row.engine} {row.run}"
        found.append((f"{label} over float32 eager", 1.0, row.speed))
        found += [(f"{label} over the reference", 1.0, row.speed / twin.speed) for twin in _by_reference(row, rows)]
    return found


def _as_it_runs(rows: Sequence[Row]) -> list[Row]:
    """Rows of kernels, and of what has none the reference's."""
    quantized = [row for row in rows if row.precision not in ("float32", "bfloat16")]
    kernels = {(row.subject, row.precision, row.form) for row in quantized if row.engine != "reference"}
    return [row for row in quantized
            if row.engine != "reference" or (row.subject, row.precision, row.form) not in kernels]  # fmt: skip


def _by_reference(row: Row, rows: Sequence[Row]) -> list[Row]:
    wanted = (row.subject, row.precision, row.form, "reference", "eager")
    found = [other for other in rows if (other.subject, other.precision, other.form, other.engine, other.run) == wanted]
    return [other for other in found if other is not row]


MOST = {8: 1.1, 4: 0.7}
"""Bytes held per weight, by a weight's bits."""
MOST_ERROR = 1.03
"""Of a kernel's error over the reference's, both against the float model."""


def memory_bars(rows: Sequence[Row]) -> list[Found]:
    """The most that was to be held per weight, and what is."""
    found: list[Found] = []
    for row in _as_it_runs(rows):
        weight = PRECISIONS[row.precision].weight
        if weight is not None and weight.bits in MOST and row.run == "eager" and "attention" not in row.engine:
            label = f"{row.subject} {row.precision} {row.form} {row.engine} bytes a weight"
            found.append((label, MOST[weight.bits], row.bytes))
    return found


def error_bars(rows: Sequence[Row]) -> list[Found]:
    """How much farther from the float model than the reference kernels may be, and are; attention in codes may more."""
    return [
        (f"{row.subject} {row.precision} {row.form} {row.engine} {row.run} error", MOST_ERROR, row.error / twin.error)
        for row in _as_it_runs(rows)
        if "attention int8" not in row.engine
        for twin in _by_reference(row, rows)
    ]


def _fastest(rows: Sequence[Row], subject: str, names: tuple[str, ...]) -> float:
    fitting = [row.speed for row in rows if row.subject == subject
               and all(name in (row.precision, row.form, row.engine, row.run) for name in names)]  # fmt: skip
    return max(fitting, default=0.0)


def bar_table(found: Sequence[Found], least: bool = True) -> str:
    """Markdown; of bars that are the least or the most wanted."""
    lines = ["| bar | wanted | reached | |", "|---|---:|---:|---|"]
    for what, wanted, reached in found:
        if reached is None:
            lines.append(f"| {what} | {wanted:g} | – | not measured |")
            continue
        held = reached >= wanted if least else reached <= wanted
        lines.append(f"| {what} | {wanted:g} | {reached:.2f} | {'held' if held else 'not held'} |")
    return "\n".join(lines) + "\n"
