"""Smoothing vectors folded into what makes a layer's input: a norm's weights, or rows of a linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segquant.numerics.layout import Layout
from segquant.optimizers.protocol import Fitted
from segquant.transforms.smoothing import Smoothing


@dataclass(frozen=True)
class DividedRows:
    """Outputs [start, stop) of a linear that become (y + plus) / vector − plus."""

    start: int
    stop: int
    plus: float
    vector: Tensor


@dataclass(frozen=True)
class LayerFold:
    """What folding changes of one layer.

    Args:
        shared: the fit of the layers that share its input; None if its input stays.
        rows: of its output; apart.
    """

    shared: Fitted | None = None
    rows: tuple[DividedRows, ...] = ()


def divided(values: Tensor, plus: float, vector: Tensor) -> Tensor:
    """(p + plus) / s − plus of rows [n, …], in p's dtype; s is [n]."""
    wide = vector.double().reshape(-1, *(1,) * (values.dim() - 1))
    return ((values.detach().double() + plus) / wide - plus).to(values.dtype)


def with_divided_rows(linear: nn.Linear, rows: tuple[DividedRows, ...]) -> nn.Linear:
    """The linear whose outputs are so; its weight is float32, its bias of the dtype that it had."""
    if not rows:
        return linear
    weight = linear.weight.detach().to(torch.float32, copy=True)
    bias = None if linear.bias is None else linear.bias.detach().clone()
    for part in rows:
        weight[part.start : part.stop] = divided(weight[part.start : part.stop], 0.0, part.vector)
        if bias is not None:
            bias[part.start : part.stop] = divided(bias[part.start : part.stop], part.plus, part.vector)
    found = nn.Linear(linear.in_features, linear.out_features, bias=bias is not None, device="meta")
    found.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        found.bias = nn.Parameter(bias, requires_grad=False)
    return found


def take_out(layout: Layout, tensors: Mapping[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """The layer of one branch without its smoothing, which its input has had by then."""
    found = dict(tensors)
    vectors = found.pop("smooth", None)
    if vectors is None:
        return layout, found
    return without_smoothing(layout), {**found, "folded": vectors[0].contiguous()}


def without_smoothing(layout: Layout) -> Layout:
    """The layout of a layer whose input comes divided."""
    kept = tuple(transform for transform in layout.transforms if not isinstance(transform, Smoothing))
    return replace(layout, branches=(layout.out_features,), transforms=kept, folded=True)


def with_rows_noted(
    layout: Layout, tensors: Mapping[str, Tensor], rows: tuple[DividedRows, ...]
) -> tuple[Layout, dict[str, Tensor]]:
    """The layer of `with_divided_rows`, which says what its outputs are."""
    if not rows:
        return layout, dict(tensors)
    ordered = sorted(rows, key=lambda part: part.start)
    vector = torch.cat([part.vector for part in ordered]).float()
    places = tuple((part.start, part.stop, part.plus) for part in ordered)
    return replace(layout, folded_rows=places), {**tensors, "folded_rows": vector}
