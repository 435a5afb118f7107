"""The library's exceptions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuantizationError(ValueError):
    """A layer, calibration set or file that cannot be quantized; the message says what to do."""


class UnknownHereError(QuantizationError):
    """A file names what this process does not know: a part that nobody registered, or a field of a newer version."""


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint: the names closest to `name`, or all of them."""
    # The benchmark has one of its own (segquant_bench.hints): eval does without the library, the library without it.
    options = sorted(choices)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    return f"known: {', '.join(options)}"
