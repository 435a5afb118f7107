"""Seconds of several ways to compute one thing, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seconds:
    """Of one way: wall-clock seconds of each call."""

    every: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.every)

    @property
    def minimum(self) -> float:
        return min(self.every)


def in_turn(ways: Mapping[str, Callable[[], object]], repeats: int, warmup: int) -> dict[str, Seconds]:
    """`repeats` rounds in which each is called once, after `warmup` rounds that do not count.

    What slows the machine for a while then slows all of them alike.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + repeats):
        for name, call in ways.items():
            seconds = _timed(call)
            if turn >= warmup:
                found[name].append(seconds)
    return {name: Seconds(tuple(every)) for name, every in found.items()}


def _timed(call: Callable[[], object]) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else None
    if wait is not None:
        wait()
    start = time.perf_counter()
    call()
    if wait is not None:
        wait()
    return time.perf_counter() - start
