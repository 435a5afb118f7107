"""The one exception that the library raises for input it cannot work with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuantizationError(ValueError):
    """A layer, a calibration set or a file that cannot be quantized; the message says what to do about it."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A short hint with the names closest to `name`, or all of them when none is close."""
    options = sorted(choices)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    return f"known: {', '.join(options)}"
