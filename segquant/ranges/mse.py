"""Ranges with the least squared rounding error (Nagel et al., arXiv 2106.08295, section 3.1), by grid search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.fake_quant import input_scales, quantize_input
from segquant.numerics.formats import QuantSpec
from segquant.ranges.amax import Amax
from segquant.ranges.blocks import map_blocks
from segquant.ranges.protocol import Range
from segquant.registry import register

SHRINK: tuple[float, ...] = tuple(step / 50 for step in range(50, 19, -1))
"""Shares of the maximum that are tried: 1.00, 0.98 … 0.40; the widest range wins ties."""


def mse_weight_scale(
    weight: Tensor,
    dtype: str,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    importance: Tensor | None = None,
    *,
    shrink: tuple[float, ...] = SHRINK,
) -> Tensor:
    """Scale of every block with the least Σ importance_j (w_ij − ŵ_ij)²; see `Range.weight_scale`.

    `shrink` are shares of the maximum to try, starting with 1.
    """
    values = weight if weight.dtype == torch.float64 else weight.float()
    weights = None if importance is None else importance.to(values).expand_as(values)

    def pick(block: Tensor, factors: Tensor | None = None) -> Tensor:
        full = F.choose_scale(block.abs().amax(-1), dtype)
        best, least = full, torch.full(full.shape, torch.inf, dtype=torch.float64, device=full.device)
        for share in shrink:
            scale = full * share
            error = (F.fake_quantize(block, scale[..., None], dtype) - block).square_()
            error = (error if factors is None else error.mul_(factors)).sum(-1, dtype=torch.float64)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
        return best

    tensors = (values,) if weights is None else (values, weights)
    return map_blocks(pick, tensors, rows, columns)


def mse_input_range(
    rows: Tensor,
    positive: Tensor,
    negative: Tensor,
    pieces: tuple[int, ...],
    dual: tuple[bool, ...],
    spec: QuantSpec,
    importance: Tensor | None = None,
    *,
    shrink: tuple[float, ...] = SHRINK,
) -> tuple[Tensor, Tensor]:
    """Ranges of a static input (positive, negative), [pieces], with the least Σ importance_j (x_tj − x̂_tj)² over rows.

    A piece with one scale has one share for both sides, one with a scale per sign a share for each. Arguments as for
    `Range.input_range`, but ranges are [pieces]; `shrink` are shares to try, starting with 1.
    """
    values = rows if rows.dtype == torch.float64 else rows.float()
    apart = torch.tensor(dual, dtype=torch.bool, device=positive.device)
    best = torch.ones(2, len(pieces), dtype=positive.dtype, device=positive.device)
    least = torch.full(best.shape, torch.inf, dtype=torch.float64, device=positive.device)
    for share in shrink:
        static = input_scales(positive * share, negative * share, dual, spec)
        error = (quantize_input(values, pieces, dual, spec, static) - values).square_()
        if importance is not None:
            error *= importance.to(error)
        sides = torch.stack([_piece_sums(error * mask, pieces) for mask in (values >= 0, values < 0)])
        sides = torch.where(apart, sides, sides.sum(0))
        better = sides < least
        best, least = torch.where(better, share, best), torch.where(better, sides, least)
    return positive * best[0], negative * best[1]


def _piece_sums(error: Tensor, pieces: tuple[int, ...]) -> Tensor:
    channels = error.sum(0, dtype=torch.float64)
    return torch.stack([piece.sum() for piece in channels.split(pieces)])


@register
@dataclass(frozen=True)
class Mse(Range):
    """The shrunk range with the least squared rounding error."""

    name: ClassVar[str] = "mse"
    needs: ClassVar[frozenset[str]] = frozenset({"stats"})

    def weight_scale(
        self,
        weight: Tensor,
        dtype: str,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> Tensor:
        return mse_weight_scale(weight, dtype, rows, columns, importance)

    def input_range(
        self,
        positive: Tensor,
        negative: Tensor,
        rows: Tensor | None,
        pieces: tuple[int, ...],
        dual: tuple[bool, ...],
        spec: QuantSpec,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert rows is not None
        above, below = F.piece_max(positive, pieces), F.piece_max(negative, pieces)
        return mse_input_range(rows, above, below, pieces, dual, spec, importance)

    def wants_headroom(self, hidden: bool, doubtful: bool) -> bool:
        return hidden

    def in_search(self) -> Range:
        """The maximum, which is far cheaper."""
        return Amax()
