"""Adapters (LoRA) of models whose smoothing was folded: made for the float model, they do not fit."""

from __future__ import annotations

from torch import nn

from segquant.layers.foreign import refuse_adapter
from segquant.layers.layer import QuantLayer

METHODS = ("load_lora_adapter", "add_adapter")
"""By which diffusers' models take one, pipelines' load_lora_weights included."""


def refuse_adapters_(model: nn.Module) -> nn.Module:
    """Let models refuse adapters if one of their layers has folded inputs or outputs; returns the model."""
    for module in model.modules():
        for name in METHODS:
            if hasattr(type(module), name) and any(map(_is_folded, module.modules())):
                vars(module)[name] = refuse_adapter
    return model


def _is_folded(layer: nn.Module) -> bool:
    return isinstance(layer, QuantLayer) and (layer.layout.folded or bool(layer.layout.folded_rows))
