"""Error of the denoiser's output on random models of three families, ours beside other people's tools.

    OMP_NUM_THREADS=1 python -m benchmarks.random_models --models flux unet --precision w8a8_dynamic

All quantize the same linears from the same 64 calls; the error is relative, on 16 fresh calls. With --convolutions our
methods quantize a UNet's convolutions too.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.random_flux import flux_inputs, random_flux
from benchmarks.random_sd3 import denoiser_inputs, random_sd3
from benchmarks.random_unet import random_unet, unet_inputs
from segquant import PRECISIONS, Segments, find_segments, model_weight_bytes, output_error, presets, quantize_
from segquant_bench.pipelines import peers

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., list[dict[str, Any]]]]] = {
    "sd3": (random_sd3, denoiser_inputs),
    "flux": (random_flux, flux_inputs),
    "unet": (random_unet, unet_inputs),
    "unet_outliers": (partial(random_unet, outlier=16), unet_inputs),
}
OURS = (
    "rtn", "gptq", "gptq_mse", "quarot", "quarot_mse", "convrot", "smoothquant_gptq", "svdquant_gptq", "segquant_a",
    "segquant_g", "segquant_plus", "segquant_r", "gptq_mixed", "auto",
)  # fmt: skip
PEERS = ("torchao_int8_dynamic", "sdnq", "modelopt_int8")


def quantized(
    model: nn.Module, name: str, precision: str, inputs: list[dict[str, Any]],
    segments: dict[str, Segments], convolutions: bool,
) -> nn.Module:  # fmt: skip
    """A quantized copy by the preset or the tool `name`."""
    found = copy.deepcopy(model)
    if name in PEERS:
        return getattr(peers, name)(precision).quantize_(found, inputs)
    return quantize_(found, getattr(presets, name)(precision, convolutions=convolutions), inputs, segments)


def errors(
    kind: str, names: Sequence[str], precision: str, calls: int, fresh: int, convolutions: bool
) -> dict[str, tuple[float, float, float]]:
    """Relative output error, MB of weights and processor seconds by quantizer."""
    make, draw = MODELS[kind]
    model = make()
    inputs, judge = draw(model, calls, 1), draw(model, fresh, 2)
    segments = find_segments(model, (), inputs[0])
    found = {}
    for name in tqdm(names, desc=kind):
        start = time.process_time()
        copied = quantized(model, name, precision, inputs, segments, convolutions)
        seconds = time.process_time() - start
        found[name] = output_error(model, copied, judge), model_weight_bytes(copied) / 1e6, seconds
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=("flux", "unet"), metavar="NAME")
    parser.add_argument("--quantizers", nargs="+", choices=OURS + PEERS, default=OURS + PEERS, metavar="NAME")
    parser.add_argument("--precision", choices=PRECISIONS, default="w8a8_dynamic")
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--fresh", type=int, default=16)
    parser.add_argument("--convolutions", action="store_true")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    lines = ["| model | quantizer | precision | error | MB | CPU s |", "|---|---|---|---:|---:|---:|"]
    for kind in options.models:
        found = errors(
            kind, options.quantizers, options.precision, options.calls, options.fresh, options.convolutions
        )  # fmt: skip
        lines += [
            f"| {kind} | {name} | {options.precision} | {error:.4f} | {size:.2f} | {seconds:.1f} |"
            for name, (error, size, seconds) in found.items()
        ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
