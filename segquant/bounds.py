"""The most that settings of methods may be: no method that makes sense needs more."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

MOST: dict[str, float] = {
    "alpha": 1, "alpha_step": 1, "average_bits": 8, "batch": 65_536, "beta_end": 1000, "beta_start": 1000,
    "bytes": 1000,  # of a budget: times plain rounding's, as operations
    "clip_norm": 1000, "damp": 1e6, "gram_shrinkage": 1e12, "group_size": 1_000_000, "headroom": 1e6, "held_out": 1,
    "iterations": 1000,  # refits, each a decomposition of every layer
    "lr": 1000, "memory_limit": 2**50, "operations": 1000, "percentile": 100, "rank": 65_536, "rank_fraction": 1,
    "rank_limit": 65_536, "rotation_group": 4**10, "rows": 100_000_000,
    "steps": 1_000_000,  # a hundred times those of AdaRound's paper
    "strength": 1e6, "threshold": 1e6, "warmup": 1,
}  # fmt: skip
"""By name. What the least is, and which is not reached, the parts say themselves."""


def check_most(part: Any, of: str = "") -> None:
    """For a dataclass's `__post_init__`; texts, as "search", and None are let through.

    Args:
        of: begins the sentence, "budget ".

    Raises:
        ValueError: a field is more than `MOST` says.
    """
    for field in fields(part):
        if field.name in MOST:
            at_most(field.name, getattr(part, field.name), of)


def at_most(name: str, value: Any, of: str = "") -> None:
    """As `check_most`, of one setting."""
    if isinstance(value, int | float) and value > MOST[name]:
        raise ValueError(f"{of}{name}={value} must be at most {MOST[name]:.12g}")
