"""DualScale against PTQ4ViT's twin uniform quantization, seconds and errors of single layers (the paper's Table 8).

    OMP_NUM_THREADS=1 python -m benchmarks.table8 --out outputs/table8

The paper has 1,075 µs for DualScale and 4,201 µs for PTQ4ViT's quantizer (AdaNorm, W8A8, RTX 4090): a ratio of 3.9.
All ways of a layer run in turn in one process, on one thread; a time is the least processor time of all rounds. Weights
are the same rounded ones for all (int8, one scale per tensor). "definition" computes in float32 what a quantizer is
defined as; "kernel" are integer products. Twin uniform's grid is one of DualScale's, with scales a power of two apart:
DualScale's kernel runs it as it is.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import segquant
from benchmarks.kernels import emoji
from benchmarks.outliers import spoil
from benchmarks.tables import machine, write
from benchmarks.twin_uniform import Twin, TwinLinear, choose_twin
from segquant import presets
from segquant.graph.segments import Segments

PUBLISHED = 4201 / 1075
"""Twin uniform's time over DualScale's."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu, "gelu": partial(nn.functional.gelu, approximate="tanh"),
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A linear, what feeds it, inputs [rows, in] to calibrate on, and fresh ones."""

    linear: nn.Linear
    activation: str
    calibration: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Row:
    """One way to run a layer: least microseconds; their spread (median / least − 1) over n rounds; times as fast as
    float32 eager; relative error of the output on fresh inputs."""

    layer: str
    quantizer: str
    by: str
    run: str
    microseconds: float
    spread: float
    n: int
    speed: float
    error: float


def random_layer(activation: str, rows: int, inputs: int, outputs: int) -> Layer:
    """Random weights with outlier channels; inputs mostly negative before the activation."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        spoil(linear, generator)
    drawn = 2 * torch.randn(2, max(rows, 64), inputs, generator=generator) - 1
    seen, fresh = ACTIVATIONS[activation](drawn)
    return Layer(linear, activation, seen, fresh[:rows])


def shipped_layer(name: str, activation: str) -> Layer:
    """A layer of the shipped denoiser with its own inputs, on random latents."""
    model, calls = emoji()
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    seen: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for call in calls:
            model(**call)
    handle.remove()
    return Layer(linear, activation, torch.cat(seen[:-1]), seen[-1])


LAYERS: dict[str, Callable[[], Layer]] = {
    "sd35_adanorm": lambda: random_layer("silu", 2, 1536, 6 * 1536),
    "sd35_feed_forward": lambda: random_layer("gelu", 1024, 4 * 1536, 1536),
    "emoji_adanorm": lambda: shipped_layer("transformer_blocks.0.norm1.linear", "silu"),
    "emoji_feed_forward": lambda: shipped_layer("transformer_blocks.0.ff.net.2", "gelu"),
}


def quantized(layer: Layer, negative: str) -> segquant.QuantLinear:
    """W8A8, static, a scale per tensor, round to nearest; `negative` as in `Cuts`."""
    method = presets.rtn("w8a8_tensor", dualscale=True, negative=negative)
    model = nn.Sequential(layer.linear)
    stats = segquant.observe(model, [(layer.calibration,)])["0"]
    made = segquant.QuantLinear.from_float(layer.linear, method, stats, Segments(activation=layer.activation))
    assert isinstance(made, segquant.QuantLinear)
    return made


def as_dual(twin: Twin, dual: segquant.QuantLinear) -> segquant.QuantLinear:
    """DualScale's layer with twin uniform's two steps."""
    made = copy.deepcopy(dual)
    made.input_scale = torch.full_like(made.input_scale, twin.coarse)
    made.input_scale_negative = torch.full_like(made.input_scale_negative, twin.fine)
    return made


def ways(layer: Layer, compiled: bool) -> dict[tuple[str, str, str], nn.Module]:
    """By quantizer, what it is computed by, and how it is run; float32 eager first."""
    plain = quantized(layer, "none")
    dual, zero = (quantized(layer, negative) for negative in ("dual", "zero_point"))
    twin = choose_twin(layer.calibration, layer.linear.weight.detach())
    made: dict[tuple[str, str], nn.Module] = {
        ("float32", "definition"): layer.linear,
        ("one scale", "definition"): plain,
        ("DualScale", "definition"): dual,
        ("twin uniform", "definition"): TwinLinear(twin, dual.weight.detach().clone(), dual.bias),
        ("zero point", "definition"): zero,
    }
    integer = {"one scale": plain, "DualScale": dual, "twin uniform": as_dual(twin, dual), "zero point": zero}
    made |= {(name, "kernel"): kernel for name, each in integer.items() if (kernel := _by_kernel(each)) is not None}
    found = {(*names, "eager"): module for names, module in made.items()}
    if compiled:
        found |= {(*names, "compiled"): torch.compile(module, fullgraph=True) for names, module in made.items()}
    return found


def _by_kernel(layer: segquant.QuantLinear) -> nn.Module | None:
    model = nn.Sequential(copy.deepcopy(layer))
    try:
        segquant.set_backend_(model, "cpu")
    except segquant.QuantizationError as error:
        sys.stderr.write(f"no integer kernel: {error}\n")
        return None
    return model


def measure(name: str, layer: Layer, compiled: bool, rounds: int, calls: int = 1) -> list[Row]:
    """Every way in turn, `rounds` times after two that warm up; a time is that of `calls` calls, divided."""
    with torch.no_grad():
        found = ways(layer, compiled)
        outputs = {names: module(layer.fresh) for names, module in found.items()}
        seconds: dict[tuple[str, str, str], list[float]] = {names: [] for names in found}
        for turn in range(-2, rounds):
            for names, module in found.items():
                start = time.process_time()
                for _ in range(calls):
                    module(layer.fresh)
                if turn >= 0:
                    seconds[names].append((time.process_time() - start) / calls)
    first = next(iter(found))
    base, right = min(seconds[first]), outputs[first]
    return [
        Row(
            name, *names, 1e6 * (least := min(every)), statistics.median(every) / max(least, 1e-12) - 1, rounds,
            base / max(least, 1e-12), float((outputs[names] - right).norm() / right.norm()),
        )
        for names, every in seconds.items()
    ]  # fmt: skip


def ratios(rows: Sequence[Row]) -> list[tuple[str, str, float]]:
    """Twin uniform's time over DualScale's, each by its fastest run: computed alike, and twin uniform by its definition
    over DualScale by the kernel."""
    found = []
    for layer in dict.fromkeys(row.layer for row in rows):
        for theirs, ours in (("definition", "definition"), ("kernel", "kernel"), ("definition", "kernel")):
            above, below = (_least(rows, layer, *way) for way in (("twin uniform", theirs), ("DualScale", ours)))
            if above and below:
                found.append((layer, theirs if theirs == ours else f"{theirs} over {ours}", above / below))
    return found


def _least(rows: Sequence[Row], layer: str, quantizer: str, by: str) -> float:
    fitting = [row.microseconds for row in rows if (row.layer, row.quantizer, row.by) == (layer, quantizer, by)]
    return min(fitting, default=0.0)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    names = [field.name for field in fields(Row)]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * 4 + "---:|" * (len(names) - 4)]
    for row in rows:
        cells = (getattr(row, name) for name in names)
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def ratio_table(found: Sequence[tuple[str, str, float]]) -> str:
    """Markdown."""
    lines = ["| layer | by | twin uniform / DualScale, time | published |", "|---|---|---:|---:|"]
    lines += [f"| {layer} | {by} | {ratio:.2f} | {PUBLISHED:.1f} |" for layer, by, ratio in found]
    return "\n".join(lines) + "\n"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=tuple(LAYERS), choices=tuple(LAYERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=5, help="calls that are timed together")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--out", type=Path, help="folder for table8.md and table8.csv")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    options = arguments(argv)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in options.layers:
        torch._dynamo.reset()
        rows += measure(name, LAYERS[name](), not options.eager, options.rounds, options.calls)
        sys.stderr.write(table([row for row in rows if row.layer == name]))
    text = f"{machine()}\n\n{table(rows)}\n{ratio_table(ratios(rows))}"
    sys.stdout.write(text)
    if options.out:
        write(options.out, "table8", text, rows)


if __name__ == "__main__":
    main()
