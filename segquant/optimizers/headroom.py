"""Headroom of static scales by the least expected error, from how the folds' largest values differ."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, log

import torch
from torch import Tensor

from segquant.observers.stats import HeldOut
from segquant.optimizers.simulation import BlockSimulation, Inputs, extremes_of

MARGINS: tuple[float, ...] = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
"""Factors of the range that calibration saw, tried where rows are few."""
LEAST_GAIN = 0.2
"""Share of the expected error that headroom must take away: few folds tell it, and rounding pays for it on all rows."""
QUANTILES = 16
"""Amounts by which a fresh value may exceed the largest seen."""
TOP = 256
"""Most entries of a row that may be clipped."""
Side = tuple[Tensor, Tensor]
"""Magnitudes [..., in] of the values that one scale holds, and the end of its range [1]."""


def best_margin(
    runs: BlockSimulation, weight: Tensor, whole: HeldOut, folds: Sequence[HeldOut], rows: int, margins: Sequence[float]
) -> float:
    """The margin whose expected squared error of inputs, weighted by their weights, is least.

    That error is what rows seen have, and what fresh ones lose beyond them: a value beyond the largest of all folds
    comes about once in as many rows as were seen, and exceeds it by an exponential amount, whose mean the spacings of
    the folds' maxima tell. The row of a fold's largest value, scaled so that it is such a one, tells what
    is clipped along with it.

    Args:
        weight: of the block [rows, in], smoothed if its inputs are.
        whole: all ranges, and a sample of rows.
        folds: each fold's own.
        rows: that set the range.
        margins: to choose from, 1 first, which stays unless another gains LEAST_GAIN.
    """
    if len(margins) == 1 or len(folds) < 2:
        return margins[0]
    importance = runs.importance(weight)
    seen = runs.inputs(whole)
    ranges = runs.ranges_of(seen, importance)
    assert ranges is not None  # of static inputs, as others have no margins
    parts = [_fold(runs, fold, seen.shift) for fold in folds]
    tails = [_tail(sides, importance) for sides in zip(*(_sides(runs, part) for part in parts), strict=True)]
    errors = {}
    for margin in margins:
        limits = [float(end.amax()) * margin for end in _ends(runs, *ranges)]
        rounded = (runs.quantized(seen.rows, ranges, margin) - seen.rows).square_() @ importance
        beyond = sum(tail.loss(limit) for tail, limit in zip(tails, limits, strict=True))
        errors[margin] = float(rounded.mean()) + beyond / rows
    best = min(margins, key=lambda margin: errors[margin])
    return best if errors[best] < (1 - LEAST_GAIN) * errors[margins[0]] else margins[0]


def _fold(runs: BlockSimulation, fold: HeldOut, shift: Tensor | None) -> Inputs:
    """A fold whose largest values are those of its sample, where that sets the range."""
    found = runs.inputs(fold, shift)
    if not runs.looks_at_rows:
        return found
    positive, negative = extremes_of(found.rows)
    return Inputs(found.rows, found.fit, positive, negative, shift)


def _two_sided(runs: BlockSimulation) -> bool:
    return runs.grid is not None and all(runs.grid.dual)


def _ends(runs: BlockSimulation, positive: Tensor, negative: Tensor) -> tuple[Tensor, ...]:
    """Of every range that one scale holds; one with a zero point has room for each sign."""
    return (positive, negative) if _two_sided(runs) else (torch.maximum(positive, negative),)


def _sides(runs: BlockSimulation, part: Inputs) -> list[Side]:
    ends = [end.amax() for end in _ends(runs, part.positive, part.negative)]
    rows = part.rows
    magnitudes = (rows.clamp_min(0), (-rows).clamp_min(0)) if _two_sided(runs) else (rows.abs(),)
    return list(zip(magnitudes, ends, strict=True))


@dataclass(frozen=True)
class _Tail:
    """Values [folds, TOP] of rows scaled to the largest seen, their weights, and the share that fresh ones add."""

    values: Tensor
    weights: Tensor
    excess: float

    def loss(self, limit: float) -> float:
        """Expected weighted squares of what lies beyond `limit`, by value beyond the largest seen."""
        if not self.excess or not self.values.numel():
            return 0.0
        shares = (torch.arange(QUANTILES, dtype=torch.float64, device=self.values.device) + 0.5) / QUANTILES
        factors = (1 - self.excess * (1 - shares).log()).to(self.values.dtype)
        excess = (self.values[..., None] * factors - limit).clamp_min_(0).square_()
        return float((excess * self.weights[..., None]).sum(1).mean(dtype=torch.float64))


def _tail(sides: Sequence[Side], importance: Tensor) -> _Tail:
    peaks = sorted((float(end) for _, end in sides), reverse=True)
    values, weights = [], []
    for magnitudes, _ in sides:
        flat, own = magnitudes[magnitudes.amax(-1).argmax()], importance
        top = flat.topk(min(TOP, len(flat)))
        peak = float(top.values[0])
        if peak > 0:
            values.append(torch.nn.functional.pad(top.values * (peaks[0] / peak), (0, TOP - len(top.values))))
            weights.append(torch.nn.functional.pad(own[top.indices], (0, TOP - len(top.values))))
    if not values:
        return _Tail(importance.new_zeros(0, TOP), importance.new_zeros(0, TOP), 0.0)
    return _Tail(torch.stack(values), torch.stack(weights), mean_excess(peaks))


def mean_excess(peaks: Sequence[float]) -> float:
    """By which share of x_1 values beyond it exceed it on average, from the folds' maxima x_1 ≥ x_2 ….

    Maxima of an exponential tail are Gumbel's; every spacing, over what it would be on average, tells the tail's mean.

    >>> round(mean_excess([8.0, 4.0, 4.0, 4.0]), 3)
    0.145
    """
    if len(peaks) < 2 or peaks[0] <= 0:
        return 0.0
    expected = gumbel_spacings(len(peaks))
    pairs = zip(itertools.pairwise(peaks), expected, strict=True)
    return sum((x - y) / usual for (x, y), usual in pairs) / len(expected) / peaks[0]


@lru_cache
def gumbel_spacings(count: int) -> tuple[float, ...]:
    """Mean distances between `count` neighbours of Gumbel's distribution, largest first."""

    def mean(rank: int) -> float:  # but for Euler's constant; from the means of maxima of m values, log m
        low = count - rank
        terms = range(low + 1, count + 1)
        signs = ((1.0 if (m - low) % 2 else -1.0) for m in terms)
        return sum(sign * comb(m - 1, low) * comb(count, m) * log(m) for sign, m in zip(signs, terms, strict=True))

    return tuple(mean(rank) - mean(rank + 1) for rank in range(1, count))
