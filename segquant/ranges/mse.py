"""Ranges with the least squared rounding error (Nagel et al., arXiv 2106.08295, section 3.1), by grid search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.numerics.input_grid import InputGrid
from segquant.numerics.scales import round_scale, without_neighbours
from segquant.numerics.weight_grid import counts_from_least
from segquant.ranges.amax import Amax
from segquant.ranges.blocks import map_blocks, widest_scale
from segquant.ranges.protocol import Range
from segquant.registry import register

SHRINK: tuple[float, ...] = tuple(step / 50 for step in range(50, 19, -1))
"""Shares of the maximum that are tried: 1.00, 0.98 … 0.40; the widest range wins ties."""
POWERS = (1.0, 2.0, 0.5)
"""Likewise, of scales that are powers of two: the MX rule's, and its neighbours."""


def mse_weight_scale(
    weight: Tensor,
    spec: QuantSpec,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    importance: Tensor | None = None,
    *,
    shrink: tuple[float, ...] = SHRINK,
    norm: float = 2.0,
) -> Tensor:
    """Scale of every block with the least Σ importance_j |w_ij − ŵ_ij|^norm; see `Range.weight_scale`.

    `shrink` are shares of the maximum to try, starting with 1.
    """
    shares = POWERS if spec.scale_dtype == "e8m0" else shrink

    def pick(block: Tensor, factors: Tensor | None = None) -> Tensor:
        full = widest_scale(block.amax(-1), (-block).amax(-1), spec)
        best, least = full, torch.full(full.shape, torch.inf, dtype=torch.float64, device=full.device)
        for share in shares:
            scale = round_scale(full * share, spec.scale_dtype)
            error = _powers(F.fake_quantize(block, scale[..., None], spec.dtype) - block, norm)
            error = (error if factors is None else error.mul_(factors)).sum(-1, dtype=torch.float64)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
        return best

    return map_blocks(pick, _with_importance(weight, importance), rows, columns)


def _powers(error: Tensor, norm: float) -> Tensor:
    return error.square_() if norm == 2 else error.abs_().pow_(norm)


def _with_importance(weight: Tensor, importance: Tensor | None) -> tuple[Tensor, ...]:
    """A weight in float32 (float64 stays) and, if it is given, the importance of every entry."""
    values = F.computed(weight)
    return (values,) if importance is None else (values, importance.to(values).expand_as(values))


def mse_weight_extremes(
    weight: Tensor,
    spec: QuantSpec,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    importance: Tensor | None = None,
    *,
    shrink: tuple[float, ...] = SHRINK,
    norm: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Of a format with a zero point: the ends of every block's range with the least squared error.

    One share of both ends is searched for first, then one of each in turn; see `mse_weight_scale`.
    """

    def pick(block: Tensor, factors: Tensor | None = None) -> Tensor:
        full = torch.stack((block.amax(-1), (-block).amax(-1)))
        best, least = full, torch.full(full.shape[1:], torch.inf, dtype=torch.float64, device=full.device)
        for above, below in ((True, True), (True, False), (False, True)):
            start = best
            for share in shrink:
                ends = start * full.new_tensor([share if above else 1.0, share if below else 1.0])[:, None, None]
                error = _powers(_between(block, ends[0], ends[1], spec) - block, norm)
                error = (error if factors is None else error.mul_(factors)).sum(-1, dtype=torch.float64)
                better = error < least
                best, least = torch.where(better, ends, best), torch.where(better, error, least)
        return best.movedim(0, -1)

    found = map_blocks(pick, _with_importance(weight, importance), rows, columns)
    return found[..., 0], found[..., 1]


def _between(block: Tensor, above: Tensor, below: Tensor, spec: QuantSpec) -> Tensor:
    """A block [..., numbers] on the grid from −below to above [...], before its scale is rounded."""
    if counts_from_least(spec):
        scale, least = F.choose_scale((above + below).clamp_min(0), spec.dtype)[..., None], -below[..., None]
        return F.fake_quantize(block - least, scale, spec.dtype).add_(least)
    kept = without_neighbours(spec.scale_dtype)
    scale, zero = F.choose_zero_point(above.clamp_min(0), below.clamp_min(0), spec.dtype, kept)
    return F.zero_fake_quantize(block, scale[..., None], zero[..., None], spec.dtype)


def mse_input_range(
    rows: Tensor,
    positive: Tensor,
    negative: Tensor,
    grid: InputGrid,
    importance: Tensor | None = None,
    *,
    shrink: tuple[float, ...] = SHRINK,
) -> tuple[Tensor, Tensor]:
    """Ranges of a static input (positive, negative), [pieces], with the least Σ importance_j (x_tj − x̂_tj)² over rows.

    A piece with one scale has one share for both sides, one with a scale per sign a share for each; one with a zero
    point has one share first, then one for each side in turn. Arguments as for `Range.input_range`, but ranges are
    [pieces]; `shrink` are shares to try, starting with 1.
    """
    values = rows if rows.dtype == torch.float64 else rows.float()
    search = _Shares(values, positive, negative, grid, importance)
    together = torch.tensor(grid.dual, dtype=torch.bool, device=positive.device).logical_not_()
    if grid.zero_point:
        ones = torch.ones_like(positive)
        joint = torch.ones_like(together)
        both = search.least(lambda share: (ones * share, ones * share), shrink, joint)[0]
        above = search.least(lambda share: (both * share, both), shrink, joint)[0] * both
        below = search.least(lambda share: (above, both * share), shrink, joint)[0] * both
        return positive * torch.where(together, both, above), negative * torch.where(together, both, below)
    sides = search.least(lambda share: (share, share), shrink, together)
    return positive * sides[0], negative * sides[1]


class _Shares:
    """Squared errors by shares of an input's ranges."""

    def __init__(
        self, rows: Tensor, positive: Tensor, negative: Tensor, grid: InputGrid, importance: Tensor | None
    ) -> None:
        self.rows, self.positive, self.negative, self.grid = rows, positive, negative, grid
        self.importance = importance

    def least(self, ranges: Callable[[float], tuple[Any, Any]], shrink: tuple[float, ...], joint: Tensor) -> Tensor:
        """The best share by side and piece [2, pieces]; `joint`: pieces whose sides count together."""
        best = torch.ones(2, len(self.grid.pieces), dtype=self.positive.dtype, device=self.positive.device)
        least = torch.full(best.shape, torch.inf, dtype=torch.float64, device=self.positive.device)
        together = bool(joint.all())
        for share in shrink:
            above, below = ranges(share)
            sides = self._errors(self.positive * above, self.negative * below, together)
            if not together:
                sides = torch.where(joint, sides.sum(0), sides)
            better = sides < least
            best, least = torch.where(better, share, best), torch.where(better, sides, least)
        return best

    def _errors(self, positive: Tensor, negative: Tensor, together: bool) -> Tensor:
        """Sums by side and piece [2, pieces], or of both sides [pieces]."""
        values, grid = self.rows, self.grid
        error = (grid.quantize(values, grid.scales(positive, negative)) - values).square_()
        if self.importance is not None:
            error *= self.importance.to(error)
        if together:
            return _piece_sums(error, grid.pieces)
        return torch.stack([_piece_sums(error * mask, grid.pieces) for mask in (values >= 0, values < 0)])


def _piece_sums(error: Tensor, pieces: tuple[int, ...]) -> Tensor:
    channels = error.sum(0, dtype=torch.float64)
    return torch.stack([piece.sum() for piece in channels.split(pieces)])


@register
@dataclass(frozen=True)
class Mse(Range):
    """The shrunk range with the least squared rounding error."""

    name: ClassVar[str] = "mse"
    shares: ClassVar[tuple[float, ...]] = SHRINK
    needs: ClassVar[frozenset[str]] = frozenset({"stats"})

    def weight_scale(
        self,
        weight: Tensor,
        spec: QuantSpec,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> Tensor:
        return mse_weight_scale(weight, spec, rows, columns, importance, shrink=self.shares)

    def weight_extremes(
        self,
        weight: Tensor,
        spec: QuantSpec,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return mse_weight_extremes(weight, spec, rows, columns, importance, shrink=self.shares)

    def input_range(
        self,
        positive: Tensor,
        negative: Tensor,
        rows: Tensor | None,
        grid: InputGrid,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert rows is not None
        above, below = F.piece_max(positive, grid.pieces), F.piece_max(negative, grid.pieces)
        return mse_input_range(rows, above, below, grid, importance, shrink=self.shares)

    def in_search(self) -> Range:
        """The maximum, which is far cheaper."""
        return Amax()

    def coarse(self) -> Range:
        """Every fifth share."""
        return _CoarseMse()


@dataclass(frozen=True)
class _CoarseMse(Mse):
    shares: ClassVar[tuple[float, ...]] = SHRINK[::5]
