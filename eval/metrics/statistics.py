"""95 % intervals: what an experiment with other prompts, made the same way, would have within them 19 times of 20.

Means have bootstrap intervals over pictures, paired by equal counts, int64 [replicates, n], and widened for few of
them; FID and KID jackknife intervals, as resamples that repeat pictures change them; errors of calls intervals over
prompts, as a prompt's calls are alike. tests/eval/metrics/test_coverage.py counts how often each holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from segquant_bench.eval.errors import EvalError

LEVEL = 0.95
Interval = tuple[float, float]


@lru_cache(maxsize=4)  # a report asks for the same again and again
def bootstrap_counts(n: int, replicates: int, seed: int) -> np.ndarray:
    """Resamples of `n` items with replacement: int64 [replicates, n], rows sum to n, not to be written to."""
    if n < 1 or replicates < 1:
        raise EvalError(f"a bootstrap needs items and replicates, got n={n} and replicates={replicates}")
    found = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=replicates)
    found.setflags(write=False)
    return found


def mean_replicates(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of `values` [n] in every resample: float64 [replicates]."""
    return np.asarray(counts @ np.asarray(values, dtype=np.float64) / counts.shape[1])


def percentile_interval(replicates: np.ndarray, level: float = LEVEL) -> Interval:
    """Efron's percentile interval."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return float(low), float(high)


def widened_interval(value: float, replicates: np.ndarray, n: int, level: float = LEVEL) -> Interval:
    """Percentile interval of a mean of `n` items, as much wider as Student's interval is than the normal one.

    A bootstrap's variance is (n - 1)/n of the mean's, and it takes this for known: at n = 8 it covers 87 % without.
    """
    low, high = percentile_interval(replicates, level)
    factor = student(n - 1, level) / normal(level) * math.sqrt(n / (n - 1))
    return value + (low - value) * factor, value + (high - value) * factor


def recentred_interval(value: float, replicates: np.ndarray, level: float = LEVEL) -> Interval:
    """Percentile interval moved so that the replicates' mean falls on `value`; for metrics that keep replicates."""
    low, high = percentile_interval(replicates, level)
    shift = value - float(np.mean(replicates))
    return low + shift, high + shift


def normal(level: float = LEVEL) -> float:
    """Half the width of the normal interval in standard errors."""
    return NormalDist().inv_cdf((1.0 + level) / 2.0)


@lru_cache(maxsize=1024)
def student(degrees: float, level: float = LEVEL) -> float:
    """Half the width of Student's interval in standard errors."""
    from scipy.special import stdtrit  # put off: half a second

    return float(stdtrit(degrees, (1.0 + level) / 2.0))


def mean_interval(values: np.ndarray, counts: np.ndarray) -> Interval | None:
    """Interval of the mean of `values` [n], a share's of booleans; None if n < 2."""
    if len(values) < 2:
        return None
    if values.dtype == bool:
        return share_interval(int(values.sum()), len(values))
    return widened_interval(float(np.mean(values)), mean_replicates(values, counts), len(values))


def share_interval(hits: int, n: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share, which a bootstrap of mere hits has none of."""
    z2 = normal(level) ** 2
    middle = (hits + z2 / 2.0) / (n + z2)
    half = math.sqrt(z2 * (hits * (n - hits) / n + z2 / 4.0)) / (n + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_difference_interval(ours: np.ndarray, theirs: np.ndarray, level: float = LEVEL) -> Interval:
    """Of the difference of two shares of the same items, bool [n]: Agresti and Min (2005), half an item a cell."""
    n = len(ours) + 2
    only_ours, only_theirs = ((mask.sum() + 0.5) / n for mask in (ours & ~theirs, theirs & ~ours))
    gap = only_ours - only_theirs
    half = normal(level) * math.sqrt((only_ours + only_theirs - gap**2) / n)
    return float(max(-1.0, gap - half)), float(min(1.0, gap + half))


def left_out_counts(n: int, groups: int) -> np.ndarray:
    """Each of `groups` groups of `n` items left out once: int64 [groups, n] of 0 and 1."""
    if not 2 <= groups <= n:
        raise EvalError(f"a jackknife of {n} items needs 2 to {n} groups, {groups} were asked for")
    kept: np.ndarray = np.arange(n) % groups != np.arange(groups)[:, None]
    return kept.astype(np.int64)


def jackknife_error(value: float, left_out: np.ndarray, n: int) -> float:
    """Standard error of a statistic of `n` items.

    Delete-a-group jackknife for groups of unequal size (Busing, Meijer and Leeden 1999), not moved by a bias in 1/n.

    Args:
        left_out: float64 [groups], its value without each group of `left_out_counts`.
    """
    groups = len(left_out)
    sizes = n - left_out_counts(n, groups).sum(axis=1)
    ratios = n / sizes
    centre = groups * value - float(((1.0 - sizes / n) * left_out).sum())
    pseudo = ratios * value - (ratios - 1.0) * left_out
    return float(np.sqrt(np.mean((pseudo - centre) ** 2 / (ratios - 1.0))))


def jackknife_interval(value: float, left_out: np.ndarray, n: int, *, positive: bool = False) -> Interval:
    """Student's interval by `jackknife_error`; of a `positive` statistic, on its logarithm."""
    half = student(len(left_out) - 1) * jackknife_error(value, left_out, n)
    if not positive or half == 0.0:
        return value - half, value + half
    if value <= 0.0:
        return 0.0, half
    return value * math.exp(-half / value), value * _exp(half / value)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


@dataclass(frozen=True)
class Spread:
    """Of a statistic over independent clusters: standard error, and half the width of its 95 % interval."""

    error: float
    half: float
    clusters: int


def clustered_spread(above: np.ndarray, below: np.ndarray, clusters: Sequence[Hashable], log: bool) -> Spread | None:
    """Of Σ above / Σ below over calls, or of its logarithm, by leaving out one cluster after the other.

    Args:
        above: float64 [calls].
        below: float64 [calls], positive.
        clusters: what each call belongs to: its prompt.

    Returns:
        None for fewer than two clusters, or if one cluster alone has what is above or below.
    """
    names = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    if len(names) < 2:
        return None
    places = np.array([names[cluster] for cluster in clusters])
    sums = [np.bincount(places, weights=part, minlength=len(names)) for part in (above, below)]
    rest = [part.sum() - part for part in sums]
    if (rest[1] <= 0.0).any() or (log and (rest[0] <= 0.0).any()):
        return None
    values = np.log(rest[0]) - np.log(rest[1]) if log else rest[0] / rest[1]
    error = float(np.sqrt((len(names) - 1) * np.mean((values - values.mean()) ** 2)))
    return Spread(error, student(len(names) - 1) * error, len(names))


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
    value, drawn = float(gaps.mean()), mean_replicates(gaps, bootstrap_counts(len(gaps), replicates, seed))
    return Difference(value, widened_interval(value, drawn, len(gaps)), len(gaps))


def clustered_mean_difference(gaps: np.ndarray, clusters: Sequence[Hashable]) -> Difference | None:
    """Mean over calls of paired differences [calls], with an interval over clusters, whose number is n."""
    spread = clustered_spread(gaps, np.ones(len(gaps)), clusters, log=False)
    if spread is None:
        return None
    value = float(gaps.mean())
    return Difference(value, (value - spread.half, value + spread.half), spread.clusters)


def paired_left_out_difference(ours: tuple[float, np.ndarray], theirs: tuple[float, np.ndarray], n: int) -> Difference:
    """Both have values without the same groups of the same `n` items."""
    value = ours[0] - theirs[0]
    return Difference(value, jackknife_interval(value, ours[1] - theirs[1], n), n)


def paired_replicate_difference(ours: tuple[float, np.ndarray], theirs: tuple[float, np.ndarray], n: int) -> Difference:
    """Both have bootstrap replicates of the same counts."""
    value = ours[0] - theirs[0]
    return Difference(value, recentred_interval(value, ours[1] - theirs[1]), n)
