"""Student's t."""

from __future__ import annotations

import math

from segquant_bench.eval.metrics.statistics import normal, student


def quantile(df: float, level: float = 0.95) -> float:
    """What |t| exceeds with probability 1 − `level`; `df` may be infinite."""
    return normal(level) if math.isinf(df) else student(df, level)


def two_sided(df: float, t: float) -> float:
    """The probability of exceeding |t|."""
    from scipy.special import ndtr, stdtr  # put off: scipy takes a moment, which most reports do not need

    return 2.0 * float(ndtr(-abs(t)) if math.isinf(df) else stdtr(df, -abs(t)))
