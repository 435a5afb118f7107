"""What the reference arithmetic of each format costs: a call's time against float32's, and the bars.

    OMP_NUM_THREADS=1 python -m benchmarks.formats --out outputs/formats

Everything of a subject runs in turn in one process, round after round, on one thread; a time is the least processor
time of all rounds. Only ratios within a subject mean something. "plain" rounds a layer's whole input alike, "cut" by
pieces and signs (SegLinear, DualScale).
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

import segquant
from benchmarks.kernels import SUBJECTS as ALL
from benchmarks.tables import machine, write
from segquant import presets

SUBJECTS = ("emoji_sd3", "linear_1536")
FORMS: dict[str, dict[str, Any]] = {"plain": {}, "cut": {"seglinear": True, "dualscale": True}}
BAR, TABLE_BAR = 2.0, 3.0
TABLES = ("fp4_e2m1", "nf4")
"""Formats of few values, of which a call may take `TABLE_BAR` times as long as float32's; of others `BAR`."""


@dataclass(frozen=True)
class Row:
    """A format on a subject: milliseconds of a call, times float32's, what it may be, relative error of the output,
    bits per weight with all that is stored beside them."""

    subject: str
    precision: str
    form: str
    milliseconds: float
    times: float
    bar: float
    error: float
    bits: float


@dataclass
class Way:
    """A model, and its least time so far."""

    precision: str
    form: str
    model: nn.Module
    best: float = float("inf")


def ways(subject: str, precisions: Sequence[str]) -> tuple[list[Way], Callable[[nn.Module], torch.Tensor]]:
    """Float32 and every format in every form; and how a model is called."""
    model, calls = ALL[subject]()
    segments = segquant.find_segments(model, (), calls[0])
    found = [Way("float32", "", model)]
    for precision in precisions:
        forms = FORMS if segquant.PRECISIONS[precision].input is not None else {"plain": {}}
        for form, settings in forms.items():
            try:
                method = presets.rtn(precision, **settings)
                made = segquant.quantize_(copy.deepcopy(model), method, calls, segments)
            except segquant.QuantizationError as error:
                sys.stderr.write(f"{subject} {precision}: left out: {error}\n")
                break
            found.append(Way(precision, form, made))

    def call(each: nn.Module) -> torch.Tensor:
        output = each(**calls[0])
        return output if isinstance(output, torch.Tensor) else output[0]

    return found, call


def bar(precision: str) -> float:
    """How many times as long as float32 a call may take."""
    scheme = segquant.PRECISIONS[precision]
    return (
        TABLE_BAR if any(spec is not None and spec.dtype in TABLES for spec in (scheme.weight, scheme.input)) else BAR
    )


def measure(subject: str, precisions: Sequence[str], rounds: int) -> list[Row]:
    """Every format in turn, `rounds` times after one that warms up."""
    with torch.no_grad():
        found, call = ways(subject, precisions)
        outputs = [call(way.model) for way in found]
        for _ in range(rounds):
            for way in found:
                start = time.process_time()
                call(way.model)
                way.best = min(way.best, time.process_time() - start)
    base, truth = found[0].best, outputs[0]
    return [
        Row(
            subject, way.precision, way.form, 1e3 * way.best, way.best / base,
            1.0 if way.precision == "float32" else bar(way.precision),
            float((output - truth).norm() / truth.norm()), _bits(way.model),
        )
        for way, output in zip(found, outputs, strict=True)
    ]  # fmt: skip


def _bits(model: nn.Module) -> float:
    layers = [layer for layer in model.modules() if isinstance(layer, segquant.QuantLinear)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    biases = sum(layer.bias.nbytes for layer in layers if layer.bias is not None)
    return 8 * (sum(layer.weight_bytes() for layer in layers) - biases) / weights if weights else 32.0


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    names = [field.name for field in fields(Row)]
    lines = ["| " + " | ".join(names) + " | |", "|" + "---|" * 3 + "---:|" * (len(names) - 3) + "---|"]
    for row in rows:
        cells = [getattr(row, name) for name in names]
        shown = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append(f"| {' | '.join(shown)} | {'held' if row.times <= row.bar else 'not held'} |")
    return "\n".join(lines) + "\n"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = tuple(segquant.PRECISIONS)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, choices=SUBJECTS, metavar="NAME")
    parser.add_argument("--precisions", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for formats.md and formats.csv")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    options = arguments(argv)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for subject in options.subjects:
        rows += measure(subject, options.precisions, options.rounds)
    text = f"{machine()}\n\n{table(rows)}"
    sys.stdout.write(text)
    if options.out:
        write(options.out, "formats", text, rows)


if __name__ == "__main__":
    main()
