"""Where in its schedule a pipeline is, in the scheduler's own numbers.

Denoisers are told a timestep in their dtype: in bfloat16, neighbours round to one value. Schedulers may round too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._place = 0

    def restart(self) -> None:
        self._place = 0

    def timestep(self) -> float | None:
        """The exact timestep of the step that comes next; None if the scheduler does not tell."""
        times, place = self._times(), self._index()
        return times[place] if place < len(times) else None

    def step(self) -> int | None:
        """The 0-based sampling step that comes next; None after the last.

        Schedulers of second order list more timesteps than steps: those of one step twice (Heun), or some in between.
        """
        times, place = self._times(), self._index()
        if not times:
            return place
        if place >= len(times):
            return None
        total = getattr(self._scheduler, "num_inference_steps", None)
        if total is not None and len(times) <= total:
            return place
        changes = [before != after for before, after in zip(times, times[1:], strict=False)]
        if total in (None, sum(changes) + 1):
            return sum(changes[:place])
        return int(-(-place * (total - 1) // (len(times) - 1)))

    def stepped(self, timestep: Any) -> None:
        """A second call of one step (for sound beside a picture) is none, where timesteps are listed."""
        times = self._times()
        if not times:
            self._place += 1
            return
        found = (place for place in range(self._place, len(times)) if times[place] == float(timestep))
        self._place = next(found, self._place - 1) + 1

    def _index(self) -> int:
        """Of the next step in the scheduler's list: by its own counter, if it has one."""
        index = getattr(self._scheduler, "step_index", None)
        if index is not None:
            return int(index)
        return self._place or int(getattr(self._scheduler, "begin_index", None) or 0)

    def _times(self) -> list[float]:
        times = getattr(self._scheduler, "timesteps", None)
        return [] if times is None else [float(time) for time in torch.as_tensor(times).tolist()]


@contextmanager
def watched(pipeline: Any) -> Iterator[Clock | None]:
    """A clock of the pipeline's scheduler; None if it has none that steps."""
    scheduler: Any = getattr(pipeline, "scheduler", None)
    original = getattr(scheduler, "step", None)
    if original is None:
        yield None
        return
    clock, before = Clock(scheduler), vars(scheduler).get("step")

    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        clock.stepped(kwargs["timestep"] if "timestep" in kwargs else args[1])
        return result

    scheduler.step = step
    try:
        yield clock
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before
