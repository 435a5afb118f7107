"""Which backend runs each quantized layer."""

from __future__ import annotations

from torch import nn

from segquant import registry
from segquant.checks import checked
from segquant.errors import QuantizationError
from segquant.kernels.backend import Backend
from segquant.layers.layer import QuantLayer
from segquant.modules.wrappers import unwrapped

NAMED = 3
"""Layers that a refusal names."""


@checked()
def backends(model: nn.Module) -> dict[str, str]:
    """The backend's name by quantized layer."""
    return {name: layer.backend.name for name, layer in _layers(model).items()}


@checked()
def set_backend_(model: nn.Module, name: str, fallback: str | None = None) -> nn.Module:
    """Choose how the quantized layers run, in place, for a model on its final device; returns the model.

    `fallback` runs layers that `name` cannot.

    Raises:
        QuantizationError: an unknown name, or layers that neither can run; nothing is changed then.
    """
    order: list[Backend] = [registry.find("backend", each)() for each in (name, fallback) if each is not None]
    chosen: dict[str, Backend] = {}
    refused: list[str] = []
    layers = _layers(model)
    for layer_name, layer in layers.items():
        reasons = []
        for backend in order:
            reason = backend.why_not(layer.layout, layer.codes.device)
            if reason is None:
                chosen[layer_name] = backend
                break
            reasons.append(reason)
        else:
            refused.append(f"{layer_name} ({'; '.join(reasons)})")
    if refused:
        more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        advice = "name another fallback" if fallback else "name a fallback, for example fallback='reference'"
        raise QuantizationError(f"backend {name!r} cannot run {', '.join(refused[:NAMED])}{more}; {advice}")
    for layer_name, backend in chosen.items():
        layers[layer_name].backend = backend
        layers[layer_name].forget_packed()
    return model


def _layers(model: nn.Module) -> dict[str, QuantLayer]:
    with unwrapped(model) as inner:
        return {name: module for name, module in inner.named_modules() if isinstance(module, QuantLayer)}
