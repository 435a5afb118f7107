"""Where in its schedule a pipeline is, in the scheduler's own numbers.

Denoisers are told a timestep in their dtype: in bfloat16, neighbours round to one value.
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
        times = self._times()
        place = self._place or int(getattr(self._scheduler, "begin_index", None) or 0)
        return times[place] if place < len(times) else None

    def stepped(self, timestep: Any) -> None:
        """A second call of one step (for sound beside a picture) is none."""
        times = self._times()
        found = (place for place in range(self._place, len(times)) if times[place] == float(timestep))
        self._place = next(found, self._place - 1) + 1

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
