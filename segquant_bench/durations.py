"""Seconds as people say them."""

from __future__ import annotations


def spoken(seconds: float) -> str:
    """At two figures or so: "40 s", "8 min", "1 h 20 min", "2 d 3 h".

    >>> spoken(0.3), spoken(7.4), spoken(95), spoken(3.6e3), spoken(9.3e4), spoken(89.9)
    ('under 1 s', '7 s', '95 s', '1 h', '1 d 2 h', '90 s')
    """
    if seconds < 0.5:
        return "under 1 s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return _two(minutes // 60, "h", minutes % 60, "min")
    hours = round(seconds / 3600)
    return _two(hours // 24, "d", hours % 24, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"
