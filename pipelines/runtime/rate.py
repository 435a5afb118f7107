"""How fast a loop is, and how long it will take."""

from __future__ import annotations

from segquant_bench.bars import Advance

AT_ONCE = 0.01
"""Of the longest step's time: what comes in less was there already, as the pictures of a run that was killed."""


class Rate:
    """The pace of one loop.

    Attributes:
        last: the latest count.
    """

    def __init__(self, first: Advance, now: float) -> None:
        self.last, self._when = first, now
        self._steps: list[tuple[int, float]] = []

    def add(self, advance: Advance, now: float) -> None:
        if advance.done > self.last.done:
            self._steps.append((advance.done - self.last.done, now - self._when))
        self.last, self._when = advance, now

    @property
    def per_second(self) -> float | None:
        """Of the steps that took time; None before the first."""
        longest = max((seconds for _, seconds in self._steps), default=0.0)
        real = [step for step in self._steps if step[1] > AT_ONCE * longest]
        seconds = sum(seconds for _, seconds in real)
        return sum(count for count, _ in real) / seconds if seconds > 0 else None

    def left(self, now: float) -> float | None:
        """Seconds to the end, at this pace; None where nobody knows."""
        pace = self.per_second
        if pace is None or not self.last.total:
            return None
        return max((self.last.total - self.last.done) / pace - (now - self._when), 0.0)

    def follows(self, advance: Advance) -> bool:
        """Whether it counts the same loop on."""
        last = self.last
        same = (advance.what, advance.total, advance.unit) == (last.what, last.total, last.unit)
        return same and advance.done >= last.done
