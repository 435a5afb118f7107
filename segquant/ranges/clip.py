"""GPTQ's and QuaRot's own clipping search (their WeightQuantizer with `mse`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from segquant.bounds import check_most
from segquant.checks import check_fields
from segquant.numerics.formats import QuantSpec
from segquant.ranges.mse import Mse, mse_weight_extremes, mse_weight_scale
from segquant.registry import register

CLIP_SHARES: tuple[float, ...] = tuple(step / 100 for step in range(100, 20, -1))
"""Shares of the maximum that are tried: 1.00, 0.99 … 0.21, as in both codes; the widest range wins ties."""


@register
@dataclass(frozen=True)
class Clip(Mse):
    """Weights: the shrunk range with the least Σ |w − ŵ|^clip_norm, all inputs alike; static inputs as `Mse`.

    Both papers have dynamic inputs only, hence no rule for the ranges of static ones.

    Args:
        clip_norm: the exponent.
    """

    clip_norm: float = 2.4
    name: ClassVar[str] = "clip"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, not {self.clip_norm}")
        check_most(self)

    def weight_scale(
        self,
        weight: Tensor,
        spec: QuantSpec,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> Tensor:
        return mse_weight_scale(weight, spec, rows, columns, shrink=CLIP_SHARES, norm=self.clip_norm)

    def weight_extremes(
        self,
        weight: Tensor,
        spec: QuantSpec,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return mse_weight_extremes(weight, spec, rows, columns, shrink=CLIP_SHARES, norm=self.clip_norm)
