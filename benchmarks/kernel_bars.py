"""What quantized layers were to reach on a processor with AVX-512 and VNNI, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


def bars(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """What was to be reached, and what is: of the bars whose subject was measured."""
    found = []
    for bar in BARS:
        best, against = (_fastest(rows, bar.subject, names) for names in (bar.best, bar.against))
        if best and against:
            found.append((f"{bar.subject}: {bar.what}", bar.wanted, best / against))
    quantized = [row for row in rows if row.precision not in ("float32", "bfloat16")]
    kernels = {(row.subject, row.precision, row.form) for row in quantized if row.engine != "reference"}
    own = [row for row in quantized
           if row.engine != "reference" or (row.subject, row.precision, row.form) not in kernels]  # fmt: skip
    for row in own:
        twins = [r for r in rows if r is not row and (r.subject, r.precision, r.form, r.run) == (
            row.subject, row.precision, row.form, "eager") and r.engine == "reference"]  # fmt: skip
        label = f"{row.subject} {row.precision} {row.form} {row.engine} {row.run}"
        found.append((f"{label} over float32 eager", 1.0, row.speed))
        found += [(f"{label} over the reference", 1.0, row.speed / twin.speed) for twin in twins]
    return found


MOST = {"w8": 1.1, "w4": 0.7}
"""Bytes held per weight, by the beginning of a precision's name."""


def memory_bars(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """The most that was to be held per weight, and what is."""
    return [
        (f"{row.subject} {row.precision} {row.form} bytes a weight", MOST[row.precision[:2]], row.bytes)
        for row in rows
        if row.engine == "cpu" and row.run == "eager" and row.precision[:2] in MOST
    ]


def _fastest(rows: Sequence[Row], subject: str, names: tuple[str, ...]) -> float:
    fitting = [row.speed for row in rows if row.subject == subject
               and all(name in (row.precision, row.form, row.engine, row.run) for name in names)]  # fmt: skip
    return max(fitting, default=0.0)


def bar_table(found: Sequence[tuple[str, float, float]], least: bool = True) -> str:
    """Markdown; of bars that are the least or the most wanted."""
    lines = ["| bar | wanted | reached | |", "|---|---:|---:|---|"]
    for what, wanted, reached in found:
        held = reached >= wanted if least else reached <= wanted
        lines.append(f"| {what} | {wanted:g} | {reached:.2f} | {'held' if held else 'not held'} |")
    return "\n".join(lines) + "\n"
