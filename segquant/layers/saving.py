"""Ways of saving that quantized layers do not fit."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from torch import nn

from segquant.errors import QuantizationError
from segquant.layers.layer import QuantLayer

METHOD = "save_pretrained"


def refuse_save_pretrained_(model: nn.Module) -> nn.Module:
    """Let `save_pretrained` of a model with quantized layers raise: its files would load with random weights."""
    for module in model.modules():
        if hasattr(type(module), METHOD) and any(isinstance(part, QuantLayer) for part in module.modules()):
            vars(module)[METHOD] = partial(_refuse, type(module).__name__)
    return model


def _refuse(kind: str, *_: Any, **__: Any) -> NoReturn:
    raise QuantizationError(
        f"save_pretrained does not know the quantized layers of this {kind}: its files would load with random weights; "
        "save it by segquant.save_quantized(model, directory), and a pipeline's other parts by themselves"
    )
