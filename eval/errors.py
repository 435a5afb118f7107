from __future__ import annotations


class EvalError(ValueError):
    """Bad input; the message is one sentence for the user."""
