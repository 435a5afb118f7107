"""Ways of saving that quantized layers do not fit."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from torch import nn

from segquant.errors import QuantizationError
from segquant.layers.foreign import METHOD, refuse_save_pretrained
from segquant.layers.layer import QuantLayer


def refuse_save_pretrained_(model: nn.Module) -> nn.Module:
    """Let `save_pretrained` of a model with quantized layers raise before it writes: see `foreign`."""
    for module in model.modules():
        if hasattr(type(module), METHOD) and any(isinstance(part, QuantLayer) for part in module.modules()):
            vars(module)[METHOD] = partial(_refuse, type(module).__name__)
    return model


def _refuse(kind: str, *_: Any, **__: Any) -> NoReturn:
    refuse_save_pretrained(kind)


def refuse_stale(model: nn.Module) -> None:
    """Raise if a layer does not compute with what would be saved."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer) and module.is_stale():
            raise QuantizationError(
                f"{name or 'the layer'} computes with an older weight than its buffers hold: one of them was written "
                "to where the layer cannot see it (numpy, DLPack, .data of what model.buffers() gives); write to the "
                "layer's own attribute, as in layer.weight_scale.mul_(2), or call layer.forget_packed(), before saving"
            )
