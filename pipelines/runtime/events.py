"""What happens to stages, told to whoever listens. Listeners change nothing: results and keys know none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from segquant_bench.pipelines.runtime.finished import Finished


class StageListener:
    """Hears of stages; each method does nothing unless a subclass says otherwise."""

    def stage_began(self, name: str) -> None:
        """A stage begins to be computed; one may begin within another."""

    def stage_broke(self, name: str) -> None:
        """It ended without a result."""

    def stage_ended(self, finished: Finished) -> None:
        """It is there: computed, or found."""


_listeners: list[StageListener] = []


@contextmanager
def hearing(listener: StageListener) -> Iterator[None]:
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def computing(name: str) -> Iterator[None]:
    """Tells that a stage is computed within it, and if it breaks."""
    for listener in tuple(_listeners):
        listener.stage_began(name)
    try:
        yield
    except BaseException:
        for listener in tuple(_listeners):
            listener.stage_broke(name)
        raise


def ended(finished: Finished) -> Finished:
    for listener in tuple(_listeners):
        listener.stage_ended(finished)
    return finished
