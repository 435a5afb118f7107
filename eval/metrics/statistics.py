"""Bootstrap intervals over pictures, paired by equal counts, int64 [replicates, n]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segquant_bench.eval.errors import EvalError

LEVEL = 0.95
Interval = tuple[float, float]


def bootstrap_counts(n: int, replicates: int, seed: int) -> np.ndarray:
    """Resamples of `n` items with replacement: int64 [replicates, n], rows sum to n."""
    if n < 1 or replicates < 1:
        raise EvalError(f"a bootstrap needs items and replicates, got n={n} and replicates={replicates}")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=replicates)


def mean_replicates(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of `values` [n] in every resample: float64 [replicates]."""
    return np.asarray(counts @ np.asarray(values, dtype=np.float64) / counts.shape[1])


def percentile_interval(replicates: np.ndarray, level: float = LEVEL) -> Interval:
    """Efron's percentile interval."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return float(low), float(high)


def recentred_interval(value: float, replicates: np.ndarray, level: float = LEVEL) -> Interval:
    """Percentile interval moved so that the replicates' mean falls on `value`, for statistics like FID."""
    low, high = percentile_interval(replicates, level)
    shift = value - float(np.mean(replicates))
    return low + shift, high + shift


def mean_interval(values: np.ndarray, counts: np.ndarray) -> Interval | None:
    """Interval of the mean of `values` [n]; None if n < 2."""
    if len(values) < 2:
        return None
    return percentile_interval(mean_replicates(values, counts))


@dataclass(frozen=True)
class Difference:
    """A paired difference, its 95 % interval and the number of pairs."""

    value: float
    interval: Interval
    n: int

    def verdict(self, direction: str) -> str:
        """`better`, `worse`, or `not distinguishable` if the interval holds zero."""
        low, high = self.interval
        if low <= 0.0 <= high:
            return "not distinguishable"
        return "better" if (high < 0.0) == (direction == "lower") else "worse"


def paired_mean_difference(ours: np.ndarray, theirs: np.ndarray, *, replicates: int, seed: int) -> Difference:
    """Ours − theirs; EvalError for different lengths or fewer than two pairs."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or len(ours) < 2:
        raise EvalError(f"a paired comparison needs two equally long series, got {ours.shape} and {theirs.shape}")
    gaps = ours - theirs
    counts = bootstrap_counts(len(gaps), replicates, seed)
    return Difference(float(gaps.mean()), percentile_interval(mean_replicates(gaps, counts)), len(gaps))


def paired_replicate_difference(ours: tuple[float, np.ndarray], theirs: tuple[float, np.ndarray], n: int) -> Difference:
    """Both have replicates of the same counts."""
    value = ours[0] - theirs[0]
    return Difference(value, recentred_interval(value, ours[1] - theirs[1]), n)
