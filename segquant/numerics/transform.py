"""The protocol of a transform of a layer's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Buffers = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype by name."""


@dataclass(frozen=True)
class Place:
    """One branch of a layer: its number, the layer's shape as in `Layout`, and its buffers."""

    in_features: int
    columns: tuple[int, ...]
    branches: tuple[int, ...]
    branch: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Transform(Protocol):
    """A change of a layer's input that its weight undoes, so that the float product stays what it is.

    To add one: derive a frozen dataclass from this class, decorate it with `segquant.register`, and give it a `name`
    and the methods below. Its fields are what it needs besides tensors (numbers, strings, tuples: they are saved as
    JSON); its tensors are the layer's buffers that `buffers` names. An optimizer returns it (see `Optimizer`).

        @segquant.register
        @dataclass(frozen=True)
        class Doubled(segquant.Transform):
            name: ClassVar[str] = "doubled"
            def buffers(self, place): return {"factor": ((place.in_features,), torch.float32)}
            def rows(self, x, place): return x * place.tensors["factor"]
            def weight(self, weight, place): return weight / place.tensors["factor"]
            def undo(self, weight, place): return weight * place.tensors["factor"]
            def gram(self, gram, place):
                factor = place.tensors["factor"]
                return gram * factor * factor[:, None]

    For every branch `rows(x) @ weight(w).T + beside(x) = x @ w.T`, `undo` is the inverse of `weight`, and
    `gram(x.T @ x) = rows(x).T @ rows(x)`. Nothing may write into its arguments. Methods must be differentiable in x.
    """

    slot: ClassVar[str] = "transform"
    name: ClassVar[str]
    mixes: ClassVar[bool] = False
    """Whether a transformed channel is made of several: the input then is not cut, and has no sign of its own."""

    def buffers(self, place: Place) -> Buffers:
        """The layer's buffers for this transform, under names of its own."""
        return {}

    def rows(self, x: Tensor, place: Place) -> Tensor:
        """Inputs [..., in]."""
        return x

    def weight(self, weight: Tensor, place: Place) -> Tensor:
        """The branch's weight [rows, in]."""
        return weight

    def undo(self, weight: Tensor, place: Place) -> Tensor:
        """Inverse of `weight`."""
        return weight

    def gram(self, gram: Tensor, place: Place) -> Tensor:
        """The inputs' Gram matrix [in, in]."""
        return gram

    def extremes(self, positive: Tensor, negative: Tensor, place: Place) -> tuple[Tensor, Tensor] | None:
        """Largest values and magnitudes of the smallest [in] of transformed inputs; None if that takes rows."""
        return None

    def beside(self, x: Tensor, place: Place) -> Tensor | None:
        """Added to the quantized product [..., rows]; None: nothing."""
        return None

    def operations(self, place: Place) -> float:
        """Multiply-accumulates per row, all branches."""
        return 0.0
