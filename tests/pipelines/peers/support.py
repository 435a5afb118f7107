"""Other people's tools and what they are tried on."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from segquant import QuantScheme, QuantSpec
from segquant_bench.pipelines import peers
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.peers import Peer

CAN = {
    "modelopt_int8": ("w8a8_tensor", "w8a8", "w8a8_dynamic"),
    "modelopt_fp8": ("fp8",),
    "modelopt_smoothquant": ("w8a8_tensor", "w8a8"),
    "modelopt_awq": ("w4a8_channel", "w4a8", "w4a4", "w4a16"),
    "modelopt_svdquant": ("w8a8_tensor", "w8a8", "w8a8_dynamic", "w4a8_channel", "w4a8", "w4a4", "w4a16"),
    "torchao_int8_dynamic": ("w8a8_dynamic",),
    "torchao_int8_static": ("w8a8_tensor", "w8a8"),
    "torchao_int4": ("w4a8_channel", "w4a8", "w4a16"),
    "torchao_intx": ("w8a16", "w4a16", "w3a16", "w2a16"),
    "torchao_fp8": ("fp8_dynamic",),
    "torchao_mx": ("mxfp8", "mxfp6", "mxfp4"),
    "torchao_nvfp4": ("nvfp4",),
    "quanto": ("w8a8", "fp8", "w8a16", "w4a16", "w2a16"),
    "sdnq": ("w8a8_dynamic", "fp8_dynamic", "w4a8_channel", "w4a8", "w8a16", "w4a16", "w3a16", "w2a16"),
    "bnb_nf4": ("w4a16_nf4",),
    "bnb_fp4": ("w4a16",),
    "bnb_int8": ("w8a8_dynamic",),
    "gguf": ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"),
}
FP4 = QuantScheme(QuantSpec("fp4_e2m1", "group", 64), None)
"""What is nearest to bitsandbytes' FP4."""


def peer(name: str, precision: str, **options: Any) -> Peer:
    """The quantizer, or a skipped test where its package is missing."""
    try:
        return getattr(peers, name)(precision, **options)
    except PipelineError as error:
        if "[peers]" in str(error):
            pytest.skip(str(error))
        raise


def batch(seed: int, rows: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(*shape, generator=generator) for shape in ((rows, 4, 16, 16), (rows, 10, 64), (rows, 64))]
    hidden, text, pooled = draw
    hidden[:, 0] *= 4  # an outlier channel, so that formats differ
    timestep = 1000 * torch.rand(rows, generator=generator)
    return {
        "hidden_states": hidden, "encoder_hidden_states": text, "pooled_projections": pooled, "timestep": timestep,
        "return_dict": False,
    }  # fmt: skip


def mean(errors: dict[str, float]) -> float:
    return statistics.fmean(errors.values())


BATCHES, HELD_OUT = [batch(0), batch(1), batch(2)], [batch(10), batch(11, rows=3)]
Rounded = Callable[[str, str | QuantScheme], tuple[dict[str, float], int]]
