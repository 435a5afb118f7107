"""p-values of intervals, and what many of them at once are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segquant_bench.eval.report.runs.student import quantile, two_sided
from segquant_bench.eval.results import Interval

ALPHA = 0.05


def p_value(value: float, interval: Interval, df: float) -> float:
    """Two-sided, of no difference, as the 95 % interval implies (Altman and Bland, BMJ 2011;343:d2304).

    The standard error is that of the interval's side towards zero, so p is below 5 % exactly where the interval leaves
    zero out. A bootstrap's own share of replicates cannot fall below 1/replicates, which no adjustment would let pass.
    """
    low, high = interval
    side = value - low if value > 0 else high - value
    if side <= 0:  # a value outside of its interval
        side = (high - low) / 2.0
    if value == 0.0 or not np.isfinite(value):
        return 1.0
    return two_sided(df, abs(value) / side * quantile(df)) if side > 0 else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: the chance of *any* false finding stays below 5 % (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return _unsorted(np.minimum(stepped, 1.0), order)


def false_discovery_rate(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: the expected *share* of false findings stays below 5 % (Benjamini and Hochberg 1995)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * len(values) / np.arange(1, len(values) + 1)
    return _unsorted(np.minimum.accumulate(stepped[::-1])[::-1], order)


def _unsorted(stepped: np.ndarray, order: np.ndarray) -> list[float]:
    found = np.empty(len(order))
    found[order] = stepped
    return [float(value) for value in found]


ADJUSTMENTS: dict[str, tuple[str, Callable[[Sequence[float]], list[float]]]] = {
    "holm": ("Holm's method", holm),
    "fdr": ("Benjamini and Hochberg's method (false discovery rate)", false_discovery_rate),
}
