"""Student's t."""

from __future__ import annotations

import math


def quantile(df: float, level: float = 0.95) -> float:
    """What |t| exceeds with probability 1 − `level`; `df` may be infinite."""
    from scipy.special import ndtri, stdtrit  # put off: scipy takes a moment, which most reports do not need

    upper = (1.0 + level) / 2.0
    return float(ndtri(upper) if math.isinf(df) else stdtrit(df, upper))


def two_sided(df: float, t: float) -> float:
    """The probability of exceeding |t|."""
    from scipy.special import ndtr, stdtr

    return 2.0 * float(ndtr(-abs(t)) if math.isinf(df) else stdtr(df, -abs(t)))
