"""How fast quantized layers run on this processor: ratios of time against torch's float32, and the bars.

    OMP_NUM_THREADS=1 python -m benchmarks.kernels --out outputs/kernels

Everything of a subject runs in turn in one process, round after round, on one thread; a time is the least processor
time of all rounds. Only ratios within a subject mean something.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import segquant
from benchmarks.kernel_bars import Row, bar_table, bars, error_bars, memory_bars
from benchmarks.outliers import spoil
from benchmarks.tables import machine, table, write
from segquant import presets
from segquant.kernels.cpu.operators import why_not_exact
from segquant.layers.layer import QuantLayer

PRECISIONS = ("w8a8_tensor", "w8a8", "w8a8_dynamic", "fp8", "w4a8_channel", "w4a8", "w4a4", "w4a16")
EMOJI = Path(__file__).parents[1] / "pipelines" / "zoo" / "emoji_sd3" / "transformer"
Calls = Sequence[dict[str, Any]]


def emoji() -> tuple[nn.Module, Calls]:
    """The shipped denoiser, batch 8."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel.from_pretrained(EMOJI).eval()
    shapes = {"hidden_states": (8, 16, 8, 8), "encoder_hidden_states": (8, 32, 256), "pooled_projections": (8, 256)}
    return model, [
        {**_normal(shapes, seed), "timestep": torch.full((8,), 900.0 - 200 * seed), "return_dict": False}
        for seed in range(4)
    ]


def block() -> tuple[nn.Module, Calls]:
    """A block of SD3.5 medium with random weights: 1,024 tokens of a picture, 154 of text, width 1,536."""
    from diffusers.models.attention import JointTransformerBlock

    model = JointTransformerBlock(1536, 24, 64, qk_norm="rms_norm").eval()
    _spoil(model)
    shapes = {"hidden_states": (1, 1024, 1536), "encoder_hidden_states": (1, 154, 1536), "temb": (1, 1536)}
    return model, [_normal(shapes, seed) for seed in range(2)]


def convolution(channels: int, size: int) -> tuple[nn.Module, Calls]:
    """3 × 3 with padding, batch 2, as in a UNet."""
    model = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)).eval()
    return model, [{"input": _normal({"x": (2, channels, size, size)}, seed)["x"]} for seed in range(2)]


def linear() -> tuple[nn.Module, Calls]:
    """The first linear of a feed-forward of SD3.5 medium, on the tokens of a picture of 512 pixels and its text."""
    return nn.Sequential(nn.Linear(1536, 6144)).eval(), [
        {"input": _normal({"x": (1178, 1536)}, seed)["x"]} for seed in range(2)
    ]


SUBJECTS: dict[str, Callable[[], tuple[nn.Module, Calls]]] = {
    "emoji_sd3": emoji,
    "sd35_block": block,
    "linear_1536": linear,
    "conv_320": lambda: convolution(320, 32),
    "conv_640": lambda: convolution(640, 16),
}


WITH_ATTENTION = ("emoji_sd3", "sd35_block")
"""Subjects whose attention is run by the kernel as well, in float32 and at w8a8."""


def _normal(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _spoil(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            spoil(module, generator, None)


@dataclass
class Way:
    """One way to run a subject; `call` returns its output."""

    names: tuple[str, str, str, str]
    call: Callable[[], Tensor]
    bytes: float
    best: float = float("inf")


def ways(subject: str, precisions: Sequence[str], compiled: bool, left_out: list[str]) -> list[Way]:
    """Float32, bfloat16, and every precision by the reference and by "auto"; some with attention by the kernel too.

    `left_out` takes what cannot be quantized.
    """
    model, calls = SUBJECTS[subject]()
    found = [
        *_runs(("float32", "", "torch"), model, calls[0], compiled, 4.0),
        *_runs(("bfloat16", "", "torch"), copy.deepcopy(model).bfloat16(), _half(calls[0]), compiled, 2.0),
    ]
    if subject in WITH_ATTENTION:
        found += _by_attention(("float32", "", "torch"), model, calls[0], compiled, 4.0)
    with torch.no_grad():
        segments = {} if subject.startswith("conv") else segquant.find_segments(model, (), calls[0])
    for precision in precisions:
        input_spec = segquant.PRECISIONS[precision].input
        # floats have no zero point, with deploy="cpu" either
        has_two = input_spec is not None and input_spec.grid.kind in ("int", "uint")
        for deploy in ("none", "cpu") if has_two else ("none",):
            method = _method(precision, deploy, subject.startswith("conv"))
            try:
                quantized = segquant.quantize_(copy.deepcopy(model), method, calls, segments)
            except segquant.QuantizationError as error:
                left_out.append(f"{subject} {precision}: left out: {error}")
                continue
            form = "zero_point" if deploy == "cpu" else "dual"
            plain = copy.deepcopy(quantized)
            found += _runs((precision, form, "reference"), plain, calls[0], False, _bytes(plain, calls[0]))
            with contextlib.redirect_stdout(io.StringIO()):
                engine = _engine([each.backend for each in segquant.set_backend_(quantized, "auto")])
            if engine != "reference":
                size = _bytes(quantized, calls[0])
                found += _runs((precision, form, engine), quantized, calls[0], compiled, size)
            if engine != "reference" and precision == "w8a8" and subject in WITH_ATTENTION:
                found += _by_attention((precision, form, engine), quantized, calls[0], compiled, size)
    return found


def _engine(layers: Sequence[str]) -> str:
    """What runs all layers, or how many of them."""
    ours = sum(each == "cpu" for each in layers)
    return "cpu" if ours == len(layers) else f"cpu, {ours} of {len(layers)}" if ours else "reference"


def _by_attention(
    names: tuple[str, str, str], model: nn.Module, call: dict[str, Any], compiled: bool, size: float
) -> list[Way]:
    """With attention by the CPU's kernel; none where there is no kernel."""
    found = []
    for attention in ("float", "int8") if why_not_exact() is None else ():
        own = copy.deepcopy(model)
        with contextlib.redirect_stdout(io.StringIO()):
            segquant.set_backend_(own, "auto", attention=attention)
        found += _runs((*names[:2], f"{names[2]}, attention {attention}"), own, call, compiled, size)
    return found


def _method(precision: str, deploy: str, convolutions: bool) -> Any:
    common: dict[str, Any] = {"seglinear": True, "dualscale": True, "convolutions": convolutions, "deploy": deploy}
    if segquant.PRECISIONS[precision].input is None:
        return presets.rtn(precision, **common)
    return presets.segquant_a(precision, alpha=0.5, **common)


def _bytes(model: nn.Module, call: dict[str, Any]) -> float:
    """Bytes that quantized layers hold per weight once they ran, biases left out."""
    with torch.inference_mode():
        model(**call)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    biases = sum(layer.bias.nbytes for layer in layers if layer.bias is not None)
    return (sum(layer.held_bytes() for layer in layers) - biases) / max(1, weights)


def _half(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value.bfloat16() if isinstance(value, Tensor) else value for key, value in call.items()}


def _runs(
    names: tuple[str, str, str], model: nn.Module, call: dict[str, Any], compiled: bool, size: float
) -> list[Way]:
    positional = "input" in call

    def runner(function: Callable[..., Any]) -> Callable[[], Tensor]:
        return lambda: _last(function(call["input"]) if positional else function(**call))

    found = [Way((*names, "eager"), runner(model), size)]
    if compiled:
        fast = torch.compile(_alone(model), fullgraph=True)
        found.append(Way((*names, "compiled"), runner(fast), size))
    return found


def _alone(model: nn.Module) -> Callable[..., Any]:
    """The model's call in code of its own: ways that share code would check the guards of all others at every call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    call.__code__ = call.__code__.replace()
    return call


def _last(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[-1]


def measure(subject: str, precisions: Sequence[str], compiled: bool, rounds: int, left_out: list[str]) -> list[Row]:
    """Every way in turn, `rounds` times after one that warms up."""
    with torch.no_grad():
        found = ways(subject, precisions, compiled, left_out)
        outputs = [way.call().float() for way in found]
        for _ in range(rounds):
            for way in found:
                start = time.process_time()
                way.call()
                way.best = min(way.best, time.process_time() - start)
    base, truth = found[0].best, outputs[0]
    return [
        Row(subject, *way.names, 1e3 * way.best, base / way.best, float((out - truth).norm() / truth.norm()), way.bytes)
        for way, out in zip(found, outputs, strict=True)
    ]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", default=tuple(SUBJECTS), choices=tuple(SUBJECTS), metavar="NAME")
    parser.add_argument(
        "--precisions", nargs="+", default=PRECISIONS, choices=tuple(segquant.PRECISIONS), metavar="NAME"
    )
    parser.add_argument("--rounds", type=_at_least_one, default=20)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--out", type=Path, help="folder for kernels.md and kernels.csv")
    return parser.parse_args(argv)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} rounds measure nothing; give 1 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    options = arguments(argv)
    torch.set_num_threads(1)
    rows: list[Row] = []
    left_out: list[str] = []
    for subject in options.subjects:
        torch._dynamo.reset()
        rows += measure(subject, options.precisions, not options.eager, options.rounds, left_out)
        sys.stderr.write(table([row for row in rows if row.subject == subject]))
    most = [*memory_bars(rows), *error_bars(rows)]
    parts = [machine() + "\n", table(rows), *(line + "\n" for line in left_out)]
    text = "\n".join([*parts, bar_table(bars(rows)), bar_table(most, least=False)])
    sys.stdout.write(text)
    if options.out:
        write(options.out, "kernels", text, rows)


if __name__ == "__main__":
    main()
