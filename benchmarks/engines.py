"""Speed of a quantized denoiser's engines against torch: minimum of one-thread runs, interleaved in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.engines --models emoji_sd3 block

"emoji_sd3" is the shipped pipeline's denoiser on a batch of 8, "block" two blocks of SD3.5 medium's size (1,178 tokens,
width 1,536) with random weights. OpenVINO compiles for the sizes of the first call, but for "any size" (`fixed=False`);
"int8 attention" multiplies queries and keys as 8-bit codes, with scales of the calibration calls.
Ratios are against torch float32 eager; only ratios mean something. Bars hold for CPUs with VNNI; on others OpenVINO's
integer products saturate, so that its weights stay codes and its products float.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant import export_onnx, output_error, presets, quantize_
from segquant.deploy.onnx.manifest import MODEL
from segquant.deploy.run import load_exported
from segquant.deploy.run.openvino import products_are_exact
from segquant.deploy.run.ort import signed_products_are_exact

ZOO = Path(__file__).resolve().parents[1] / "pipelines" / "zoo"
BARS = {
    ("emoji_sd3", "ort int8", "ort float32"): 1.7,
    ("emoji_sd3", "openvino int8", "torch float32"): 2.6,
    ("emoji_sd3", "openvino int8, any size", "torch float32"): 2.6,
    ("emoji_sd3", "openvino int8, bfloat16 rest", "torch float32"): 3.3,
    ("emoji_sd3", "openvino int8, bfloat16 rest, any size", "torch float32"): 3.3,
    ("block", "openvino int8", "torch float32"): 3.5,
    ("block", "openvino int8, any size", "torch float32"): 3.5,
    ("block", "openvino int8, int8 attention", "torch float32"): 3.5,
    ("block", "openvino int8, int8 attention, any size", "torch float32"): 3.5,
    ("block", "openvino int8, bfloat16 rest", "torch float32"): 3.5,
    ("block", "openvino int8, bfloat16 rest, any size", "torch float32"): 3.5,
}
"""Least speed of the first against the second."""
WAYS: dict[str, dict[str, Any]] = {
    "": {}, ", bfloat16 rest": {"bfloat16": True}, ", any size": {"fixed": False},
    ", bfloat16 rest, any size": {"bfloat16": True, "fixed": False},
}  # fmt: skip
"""How OpenVINO runs a file."""


@dataclass(frozen=True)
class Row:
    """Seconds of an engine's fastest call, their spread (median / fastest − 1), error of the output, bytes of files."""

    name: str
    seconds: float
    spread: float
    error: float
    bytes: int


def emoji() -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    """The emoji denoiser, calibration calls and one call of a batch of 8."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel.from_pretrained(ZOO / "emoji_sd3" / "transformer", dtype=torch.float32).eval()
    return model, _calls(model, 8, 2), _calls(model, 1, 8, seed=2)[0]


def block() -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    """Two blocks of SD3.5 medium's width: 1,024 image and 154 text tokens, a batch of one."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=64, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=24,
        joint_attention_dim=1536, caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16,
        pos_embed_max_size=96,
    ).eval()  # fmt: skip
    # a file made from an example of one holds a batch of one alone
    return model, _calls(model, 2, 1, size=64, words=154), _calls(model, 1, 1, 2, size=64, words=154)[0]


def _calls(
    model: Any, count: int, batch: int, seed: int = 1, size: int | None = None, words: int = 77
) -> list[dict[str, Any]]:
    config, found = model.config, []
    g = torch.Generator().manual_seed(seed)
    side = size or config.sample_size
    for index in range(count):
        found.append({
            "hidden_states": torch.randn(batch, config.in_channels, side, side, generator=g),
            "encoder_hidden_states": torch.randn(batch, words, config.joint_attention_dim, generator=g),
            "pooled_projections": torch.randn(batch, config.pooled_projection_dim, generator=g),
            "timestep": torch.full((batch,), 1000 * (index + 0.5) / count),
            "return_dict": False,
        })  # fmt: skip
    return found


def engines(
    model: nn.Module, calibration: list[dict[str, Any]], folder: Path, every_cpu: bool
) -> dict[str, tuple[nn.Module, int]]:
    """Every engine's module, and the bytes of its files."""
    quantized = copy.deepcopy(model)
    quantize_(quantized, presets.segquant_a("w8a8", alpha=0.5, deploy="onnx"), calibration)
    float_like = copy.deepcopy(model)
    first = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    # a float file: one small layer's weight as codes, since an export is of a quantized model
    rest = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != first]
    quantize_(float_like, presets.rtn("w8a8", skip=rest), calibration)
    found: dict[str, tuple[nn.Module, int]] = {"torch float32": (model, 0), "torch reference": (quantized, 0)}
    example = calibration[0]
    for engine in ("ort", "openvino"):
        for name, source in (("float32", float_like), ("int8", quantized)):
            written = export_onnx(source, folder / f"{engine}-{name}", (), example, profile=engine, every_cpu=every_cpu)
            found[f"{engine} {name}"] = load_exported(written.path.parent, engine, threads=1), written.bytes
    coded = folder / "openvino-int8-attention"
    export_onnx(
        quantized, coded, (), example, profile="openvino", every_cpu=every_cpu, attention="int8",
        attention_batches=calibration,
    )  # fmt: skip
    for kind, source in (("openvino int8", folder / "openvino-int8"), ("openvino int8, int8 attention", coded)):
        size = (source / MODEL).stat().st_size
        for name, options in WAYS.items():
            if kind + name not in found:
                found[kind + name] = load_exported(source, "openvino", threads=1, **options), size
    return found


def measured(runs: dict[str, tuple[nn.Module, int]], call: dict[str, Any], exact: nn.Module, rounds: int) -> list[Row]:
    """Every engine in turn, `rounds` times."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for module, _ in runs.values():
            module(**call)
        for _ in range(rounds):
            for name, (module, _) in runs.items():
                start = time.process_time()
                module(**call)
                seconds[name].append(time.process_time() - start)
    return [
        Row(name, min(times), statistics.median(times) / min(times) - 1, output_error(exact, runs[name][0], [call]),
            runs[name][1])
        for name, times in seconds.items()
    ]  # fmt: skip


def table(kind: str, rows: Sequence[Row]) -> str:
    """Markdown, with the bars beneath."""
    by_name = {row.name: row for row in rows}
    base = by_name["torch float32"].seconds
    lines = [f"| {kind} | speed | spread | error | MB |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {row.name} | {base / row.seconds:.2f} | {row.spread:.0%} | {row.error:.4f} | {row.bytes / 1e6:.1f} |"
        for row in rows
    ]
    for (where, fast, slow), bar in BARS.items():
        if where == kind:
            ratio = by_name[slow].seconds / by_name[fast].seconds
            lines.append(f"\n{fast} against {slow}: {ratio:.2f} (bar {bar}: {'held' if ratio >= bar else 'not held'})")
    return "\n".join(lines)


MODELS: dict[str, Callable[[], tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]]] = {
    "emoji_sd3": emoji,
    "block": block,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=tuple(MODELS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--every-cpu", action="store_true", help="unsigned weights although this CPU needs none")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    vnni = signed_products_are_exact() and products_are_exact()
    sys.stdout.write(f"integer products of signed weights are {'exact' if vnni else 'not exact'} on this CPU\n\n")
    for kind in options.models:
        model, calibration, call = MODELS[kind]()
        with tempfile.TemporaryDirectory() as folder:
            runs = engines(model, calibration, Path(folder), options.every_cpu or not vnni)
            sys.stdout.write(table(kind, measured(runs, call, model, options.rounds)) + "\n\n")


if __name__ == "__main__":
    main()
