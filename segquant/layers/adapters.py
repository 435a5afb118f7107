"""Adapters (LoRA): models whose smoothing was folded take none, files of other tools hold none."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from segquant.errors import QuantizationError
from segquant.layers.foreign import refuse_adapter
from segquant.layers.layer import QuantLayer
from segquant.modules.layers import has_adapter

METHODS = ("load_lora_adapter", "add_adapter")
"""By which diffusers' models take one, pipelines' load_lora_weights included."""
BASE = ".base_layer."
"""Of a state dict's names: peft's, of the layer that an adapter is beside."""


def refuse_adapters_(model: nn.Module) -> nn.Module:
    """Let models refuse adapters if one of their layers has folded inputs or outputs; returns the model."""
    for module in model.modules():
        for name in METHODS:
            if hasattr(type(module), name) and any(map(_is_folded, module.modules())):
                vars(module)[name] = refuse_adapter
    return model


def refuse_attached(model: nn.Module, writer: str) -> None:
    """Raise if an adapter is beside a layer, quantized or not: its file would have names that no loader knows."""
    name = next((name for name, module in model.named_modules() if has_adapter(module)), None)
    if name is not None:
        raise QuantizationError(
            f"{name or 'the layer'} has an adapter, which {writer} does not write; write it by save_lora_weights, take "
            "it out by unload_lora_weights, then save the model"
        )


def refuse_without(model: nn.Module, stored: Iterable[str], folder: object) -> None:
    """Raise if tensors were stored of layers that had adapters beside them, and the model's have none."""
    modules = dict(model.named_modules())
    adapted = (name.rpartition(BASE)[0] for name in stored if BASE in name)
    name = next((name for name in adapted if name not in modules or not has_adapter(modules[name])), None)
    if name is not None:
        raise QuantizationError(
            f"{folder} was saved with an adapter at {name}, which this model has not; pass a model with the saved "
            "adapters (peft) to load_quantized as model=, or take them out before saving (pipe.unload_lora_weights()) "
            "and save them by save_lora_weights"
        )


def _is_folded(layer: nn.Module) -> bool:
    return isinstance(layer, QuantLayer) and (layer.layout.folded or bool(layer.layout.folded_rows))
