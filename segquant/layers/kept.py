"""Solved layers as pieces of a `Keeper`."""

from __future__ import annotations

from torch import nn

from segquant.keep import Keeper
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantLinear
from segquant.modules.layers import as_linear, window_of
from segquant.numerics.layout import Layout


def keep_layer(keep: Keeper, name: str, module: QuantLayer) -> None:
    keep.put(f"layer {name}", module.tensors(), module.layout.to_dict())


def kept_layer(keep: Keeper, name: str, layer: nn.Module) -> QuantLayer | None:
    """The layer that was kept of this float one, on its device; None if none was."""
    piece = keep.get(f"layer {name}")
    if piece is None:
        return None
    weight = as_linear(layer).weight
    tensors = {key: tensor.to(weight.device) for key, tensor in piece.tensors.items()}
    layout = Layout.from_dict(piece.about, asker=f"layer {name!r}")
    return QuantLinear.from_tensors(layout, tensors, window_of(layer), dtype=weight.dtype)
