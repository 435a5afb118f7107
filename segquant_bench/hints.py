"""What a sentence about an unknown name ends with; for pipelines and eval.

`segquant.errors.nearest` says the same of the library's names: the library is installed without this package, and eval
reads folders without the library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known names, or all of them where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(item) for item in close) + "?"
    return "known are " + ", ".join(known) if known else "none are known here"
