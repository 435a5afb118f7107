from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from segquant import PRECISIONS, QuantScheme, layer_errors, model_weight_bytes, presets, quantize_
from tests.pipelines.peers.support import BATCHES, HELD_OUT, Rounded
from tests.tiny import tiny_denoiser


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return tiny_denoiser(layers=1)


@pytest.fixture(scope="module")
def ours(model: nn.Module) -> Rounded:
    """Layer errors and bytes of a preset of this project at a precision, with the tools' float32 scales."""

    @functools.cache
    def made(preset: str, precision: str | QuantScheme) -> tuple[dict[str, float], int]:
        options = {"alpha": 0.5} if preset == "smoothquant" else {}
        scheme = PRECISIONS[precision] if isinstance(precision, str) else precision
        if scheme.weight.scale_dtype == "bfloat16":  # which the tools do not have
            scheme = replace(scheme, weight=replace(scheme.weight, scale_dtype="float32"))
        method = getattr(presets, preset)(scheme, **options)
        quantized = quantize_(copy.deepcopy(model), method, BATCHES)
        return layer_errors(model, quantized, HELD_OUT), model_weight_bytes(quantized)

    return made
