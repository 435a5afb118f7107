"""What a sentence about an unknown name ends with; for pipelines and eval.

`segquant.errors.nearest` says the same of the library's names: the library is installed without this package, and eval
reads folders without the library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 1000
"""Characters of names in a sentence."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known names, or all of them where none is near, as far as a sentence has room."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(item) for item in close) + "?"
    if not known:
        return "none are known here"
    shown = known[:1]
    while len(shown) < len(known) and len(", ".join(shown)) + len(known[len(shown)]) < MOST:
        shown.append(known[len(shown)])
    more = f" and {len(known) - len(shown)} more" if len(shown) < len(known) else ""
    return "known are " + ", ".join(shown) + more
