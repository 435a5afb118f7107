"""Absolute-maximum scales and round to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.numerics.input_grid import InputGrid
from segquant.ranges.blocks import block_max, widest_scale
from segquant.ranges.protocol import Range
from segquant.registry import register


def weight_scale(weight: Tensor, spec: QuantSpec, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """amax / code_max of every block of a weight; see `Range.weight_scale`."""
    if spec.scale_dtype == "q0":
        return widest_scale(block_max(weight, rows, columns), block_max(-weight, rows, columns), spec)
    amax = block_max(weight.abs(), rows, columns)
    return widest_scale(amax, amax, spec)


@register
@dataclass(frozen=True)
class Amax(Range):
    """The largest magnitude that was seen."""

    name: ClassVar[str] = "amax"
    input_rows: ClassVar[bool] = False

    def weight_scale(
        self,
        weight: Tensor,
        spec: QuantSpec,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> Tensor:
        return weight_scale(weight, spec, rows, columns)

    def input_range(
        self,
        positive: Tensor,
        negative: Tensor,
        rows: Tensor | None,
        grid: InputGrid,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return F.piece_max(positive, grid.pieces), F.piece_max(negative, grid.pieces)
