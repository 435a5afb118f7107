"""A run that says how far it is: lines of the log while a stage computes, and values for loggers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from segquant_bench.bars import Advance, between_bars, listening
from segquant_bench.durations import spoken
from segquant_bench.pipelines.runtime.cost import held_mb
from segquant_bench.pipelines.runtime.events import StageListener, hearing
from segquant_bench.pipelines.runtime.finished import Finished
from segquant_bench.pipelines.runtime.rate import Rate

log = logging.getLogger(__name__)

LINES = 30.0
"""Seconds between two lines about a stage."""
VALUES = 10.0
"""Seconds between two values for loggers."""
WORTH_TELLING = 10.0
"""Seconds: what will take less is not foretold."""
TICK = 0.5


@dataclass
class _Open:
    """A stage that is being computed."""

    name: str
    began: float
    told: float
    rate: Rate | None = None
    foretold: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Watch(StageListener):
    """Follows one run, in the thread that computes and in one that watches the clock.

    Args:
        expected: seconds by stage, of earlier ones that are alike.
        prefix: before every line.
        values: is given numbers by name while stages compute, in either thread.
        tell: takes a line.
    """

    def __init__(
        self,
        expected: Mapping[str, float] | None = None,
        prefix: str = "",
        values: Callable[[Mapping[str, float]], None] | None = None,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expected, self._prefix, self._values = dict(expected or {}), prefix, values
        self._tell, self._clock = tell or _say, clock
        self._open: list[_Open] = []
        self._began, self._valued, self._ended = clock(), clock(), 0

    def stage_began(self, name: str) -> None:
        now = self._clock()
        self._open.append(_Open(name, now, now))
        self._give(now)

    def stage_broke(self, name: str) -> None:
        self._open = [stage for stage in self._open if stage.name != name]

    def stage_ended(self, finished: Finished) -> None:
        ended = [stage for stage in self._open if stage.name == finished.name]
        self._open = [stage for stage in self._open if stage.name != finished.name]
        self._ended += 1
        rates = [stage.rate for stage in ended if stage.rate is not None and stage.rate.last.unit]
        if self._values is not None and rates and rates[0].per_second is not None:
            self._values({f"stage/{finished.name}/{rates[0].last.unit}s_per_second": rates[0].per_second})

    def advanced(self, advance: Advance) -> None:
        """A loop went on: the innermost stage's. The first batch is told of, if much is left."""
        stage, now = self._innermost(), self._clock()
        if stage is None:
            return
        with stage.lock:
            if stage.rate is None or not stage.rate.follows(advance):
                stage.rate = Rate(advance, now)
            else:
                stage.rate.add(advance, now)
            left = stage.rate.left(now)
            tells = not stage.foretold and advance.unit != "" and left is not None and left >= WORTH_TELLING
            stage.foretold = stage.foretold or tells
        if tells:
            self._line(stage, now)

    def look(self) -> None:
        """Tell what is due."""
        stage, now = self._innermost(), self._clock()
        if stage is not None and now - stage.told >= LINES:
            self._line(stage, now)
        if stage is not None and now - self._valued >= VALUES:
            self._give(now)

    def _innermost(self) -> _Open | None:
        stages = self._open
        return stages[-1] if stages else None

    def _line(self, stage: _Open, now: float) -> None:
        stage.told = now
        self._tell(f"{self._prefix}{stage.name}: {', '.join(self._parts(stage, now))}")

    def _parts(self, stage: _Open, now: float) -> list[str]:
        passed, rate, expected = now - stage.began, stage.rate, self._expected.get(stage.name)
        parts = [f"{spoken(passed)} so far"]
        if rate is not None and rate.last.total:
            pace, left = rate.per_second, rate.left(now)
            unit = f" {rate.last.unit}s" if rate.last.unit else ""
            what = "" if rate.last.what == stage.name else f"{rate.last.what}, "
            parts = [f"{what}{rate.last.done} of {rate.last.total}{unit}"]
            if pace is not None and rate.last.unit:
                parts.append(f"{pace:.3g} a second")
            if left is not None:
                return [*parts, f"about {spoken(left)} left" if left > 1 else "nearly done"]
        if expected is None:
            return parts
        rest = expected - passed
        earlier = f"(one like it took {spoken(expected)})"
        return [*parts, f"about {spoken(rest)} left {earlier}" if rest > 0 else f"longer than expected {earlier}"]

    def _give(self, now: float) -> None:
        self._valued, stage = now, self._innermost()
        if self._values is None or stage is None:
            return
        found = {"seconds": now - self._began, "stages_done": float(self._ended), **held_mb()}
        rate = stage.rate
        if rate is not None:
            if rate.last.total:
                found["share_of_stage"] = rate.last.done / rate.last.total
            if rate.last.unit and rate.per_second is not None:
                found[f"{rate.last.unit}s_per_second"] = rate.per_second
        self._values({f"progress/{key}": value for key, value in found.items()})


def _say(line: str) -> None:
    with between_bars():
        log.info("%s", line)


@contextmanager
def followed(watch: Watch) -> Iterator[None]:
    """Let a watch hear of all that is computed within it; a thread of its own sees to lines that are due."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(TICK):
            watch.look()

    thread = threading.Thread(target=look, name="segquant-watch", daemon=True)
    with hearing(watch), listening(watch.advanced):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=TICK * 10)
