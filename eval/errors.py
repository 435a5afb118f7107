"""The exception that means "the input is wrong"."""

from __future__ import annotations


class EvalError(ValueError):
    """One sentence for the user: what was asked, what is there, what to do."""
