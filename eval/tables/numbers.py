from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from segquant_bench.eval.results import Interval


def format_number(value: float, digits: int | None = None) -> str:
    """Three to four significant digits, never in exponents; ∞ for infinity."""
    if digits is None and abs(value) < 5e-6:
        return "0"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{decimals(value) if digits is None else digits}f}"


def decimals(value: float) -> int:
    """For three or four significant digits, at most five."""
    if abs(value) < 5e-6 or math.isinf(value):
        return 0
    return min(max(2 - math.floor(math.log10(abs(value))), 1 if abs(value) < 1000 else 0), 5)


def format_interval(interval: Interval, value: float) -> str:
    """``[lo, hi]`` with the decimals of its value."""
    digits = decimals(value)
    return f"[{format_number(interval[0], digits)}, {format_number(interval[1], digits)}]"


def format_spread(sd: float | None, value: float) -> str:
    """`` ± 0.12``: one digit more than its value; nothing without one.

    >>> format_spread(0.1234, 43.6), format_spread(None, 1.0)
    (' ± 0.12', '')
    """
    return "" if sd is None else f" ± {format_number(sd, decimals(value) + 1 if sd else 0)}"


def format_difference(value: float, interval: Interval, unit: str = "") -> str:
    """Three significant digits of the interval's larger edge, with signs.

    >>> format_difference(1.234, (0.9, 1.5), "dB")
    '+1.23 dB [+0.90, +1.50]'
    """
    low, high = interval
    magnitude = max(abs(low), abs(high))
    digits = 3 if magnitude == 0 or math.isinf(magnitude) else min(max(2 - math.floor(math.log10(magnitude)), 0), 6)
    behind = f" {unit}" if unit else ""
    return f"{value:+.{digits}f}{behind} [{low:+.{digits}f}, {high:+.{digits}f}]"


def format_ratio(value: float, interval: Interval) -> str:
    """A ratio and its interval.

    >>> format_ratio(0.7204, (0.68, 0.77))
    '×0.720 [0.680, 0.770]'
    """
    return f"×{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def short(value: Any, others: Iterable[Any] = ()) -> str:
    """A setting: floats with six significant digits, with all of them where one of `others` would look the same.

    >>> short(0.5841694527491272), short(0.5), short(0.1234567, [0.1234568])
    ('0.584169', '0.5', '0.1234567')
    """
    if not isinstance(value, float) or float(found := f"{value:.6g}") == value:
        return str(value)
    alike = any(str(o) == found or (isinstance(o, float) and f"{o:.6g}" == found) for o in others if o != value)
    return str(value) if alike else found


def joined(*parts: str) -> str:
    """The parts that are not empty, with commas."""
    return ", ".join(part for part in parts if part)
