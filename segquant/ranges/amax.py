"""Absolute-maximum scales and round to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.input_grid import InputGrid
from segquant.ranges.protocol import Range
from segquant.registry import register


def weight_scale(weight: Tensor, dtype: str, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """amax / code_max of every block of a weight; see `Range.weight_scale`."""
    amax = F.piece_max(weight.abs(), columns)
    if not (F.uniform(rows) and rows[0] == 1):
        amax = torch.stack([block.amax(0) for block in amax.split(rows)])
    return F.choose_scale(amax, dtype)


@register
@dataclass(frozen=True)
class Amax(Range):
    """The largest magnitude that was seen."""

    name: ClassVar[str] = "amax"
    input_rows: ClassVar[bool] = False

    def weight_scale(
        self,
        weight: Tensor,
        dtype: str,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> Tensor:
        return weight_scale(weight, dtype, rows, columns)

    def input_range(
        self,
        positive: Tensor,
        negative: Tensor,
        rows: Tensor | None,
        grid: InputGrid,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return F.piece_max(positive, grid.pieces), F.piece_max(negative, grid.pieces)

    def wants_headroom(self, hidden: bool, doubtful: bool) -> bool:
        return hidden or doubtful
