"""Ranges from a percentile of the magnitudes (Wu et al. 2020, arXiv 2004.09602, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.checks import check_fields
from segquant.numerics.input_grid import InputGrid
from segquant.ranges.amax import Amax
from segquant.registry import register


def quantile(values: Tensor, q: float) -> Tensor:
    """Quantile of values [..., n] along the last dimension, linearly interpolated, for any n."""
    count = values.shape[-1]
    place = (count - 1) * (1 - q)  # counted from the top
    index = min(int(place), count - 1)
    top = values.topk(min(index + 2, count), dim=-1).values
    high, low = top[..., index], top[..., min(index + 1, top.shape[-1] - 1)]
    return high + (low - high) * (place - index)


def percentile_range(
    rows: Tensor, pieces: tuple[int, ...], dual: tuple[bool, ...], percentile: float
) -> tuple[Tensor, Tensor]:
    """Ranges of a static input per piece, (positive, negative), [pieces], at least 0.

    A piece with one scale gets the percentile of |x| on both sides; one with a scale per sign, that of each sign.
    `dual` are pieces whose signs are treated apart; `percentile` is in (0, 100].
    """
    q = _share(percentile)
    values = rows if rows.dtype == torch.float64 else rows.float()
    positive, negative = [], []
    for piece, apart in zip(values.split(pieces, dim=-1), dual, strict=True):
        flat = piece.reshape(-1)
        if apart:
            positive.append(_one_side(flat[flat > 0], q))
            negative.append(_one_side(-flat[flat < 0], q))
        else:
            positive.append(_one_side(flat.abs(), q))
            negative.append(positive[-1])
    return torch.stack(positive), torch.stack(negative)


def _share(percentile: float) -> float:
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must lie in (0, 100], not {percentile}; 99.99 is usual, 100 is the maximum")
    return percentile / 100


def _one_side(magnitudes: Tensor, q: float) -> Tensor:
    if not magnitudes.numel():
        return magnitudes.new_zeros(())
    found = quantile(magnitudes, q)
    return torch.where(found > 0, found, magnitudes.amax())


@register
@dataclass(frozen=True)
class Percentile(Amax):
    """Static inputs by a percentile, in (50, 100], of their magnitudes; weights keep their maximum."""

    percentile: float = 99.99
    name: ClassVar[str] = "percentile"
    input_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100], not {self.percentile}")

    def input_range(
        self,
        positive: Tensor,
        negative: Tensor,
        rows: Tensor | None,
        grid: InputGrid,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert rows is not None
        return percentile_range(rows, grid.pieces, grid.dual, self.percentile)
