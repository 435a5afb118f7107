"""Calibration batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def head(batches: Iterable[Any], count: int) -> tuple[list[Any], Iterable[Any]]:
    """The first batches, and all of them again."""
    iterator = iter(batches)
    first = list(itertools.islice(iterator, count))
    return first, itertools.chain(first, iterator) if iterator is batches else batches


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return ((batch,) if isinstance(batch, Tensor) else tuple(batch)), None
