from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from segquant import QuantScheme, layer_errors, model_weight_bytes, presets, quantize_
from tests.pipelines.peers.support import BATCHES, HELD_OUT, Rounded
from tests.tiny import tiny_denoiser


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return tiny_denoiser(layers=1)


@pytest.fixture(scope="module")
def ours(model: nn.Module) -> Rounded:
    """Layer errors and bytes of a preset of this project at a precision."""

    @functools.cache
    def made(preset: str, precision: str | QuantScheme) -> tuple[dict[str, float], int]:
        options = {"alpha": 0.5} if preset == "smoothquant" else {}
        method = getattr(presets, preset)(precision, **options)
        quantized = quantize_(copy.deepcopy(model), method, BATCHES)
        return layer_errors(model, quantized, HELD_OUT), model_weight_bytes(quantized)

    return made
