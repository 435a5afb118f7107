"""The part of a stage's batches that one of several processes makes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Every `count`-th batch, from batch `number` on: uneven splits differ by one batch."""

    number: int
    count: int

    def has(self, start: int, batch_size: int) -> bool:
        """Whether the batch that begins with prompt `start` is in it."""
        return start // batch_size % self.count == self.number
