"""Adapters (LoRA) of models whose smoothing was folded: made for the float model, they do not fit."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from segquant.errors import QuantizationError
from segquant.layers.layer import QuantLayer

METHODS = ("load_lora_adapter", "add_adapter")
"""By which diffusers' models take one, pipelines' load_lora_weights included."""


def is_folded(layer: nn.Module) -> bool:
    """Whether its inputs or outputs are not the float layer's."""
    return isinstance(layer, QuantLayer) and (layer.layout.folded or bool(layer.layout.folded_rows))


def refuse_adapter(*_: Any, **__: Any) -> NoReturn:
    raise QuantizationError(
        "an adapter (LoRA) does not fit this quantized model: smoothing was folded into its norms, so that layers get "
        "other inputs than those that the adapter was made for; quantize with smoothing='layer', or fuse the adapter "
        "into the float model before quantize_"
    )


def refuse_adapters_(model: nn.Module) -> nn.Module:
    """Let models with folded layers refuse adapters; returns the model."""
    for module in model.modules():
        for name in METHODS:
            if hasattr(type(module), name) and any(map(is_folded, module.modules())):
                vars(module)[name] = refuse_adapter
    return model
