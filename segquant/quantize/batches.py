"""Calibration batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from segquant.modules.calls import arguments


def head(batches: Iterable[Any], count: int) -> tuple[list[Any], Iterable[Any]]:
    """The first batches, and all of them again."""
    iterator = iter(batches)
    first = list(itertools.islice(iterator, count))
    return first, itertools.chain(first, iterator) if iterator is batches else batches


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    args, keywords = arguments(batch)
    return args, keywords or None
