"""The table behind Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from segquant_bench.eval.results import Interval
from segquant_bench.eval.tables.numbers import format_number

DASH = "–"
ARROWS = {"higher": "↑", "lower": "↓", None: ""}
KINDS = ("key", "count", "number")
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    Attributes:
        text: not yet escaped.
        value: the number, for CSV; `sd` its standard deviation over calibration seeds.
        verdict: ``"better"``, ``"worse"`` or ``"tie"``.
    """

    text: str
    bold: bool = False
    value: float | None = None
    interval: Interval | None = None
    verdict: str = ""
    sd: float | None = None


Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Column:
    """The head of a column.

    Attributes:
        kind: ``"key"`` (left), ``"number"`` (right) or ``"count"`` (right, a key in HTML).
        detail: such as a metric's network.
        direction: ``"lower"`` or ``"higher"`` is better.
        intervals: CSV has columns for interval edges; `spread`: and one for standard deviations.
    """

    title: str
    kind: str = "number"
    detail: str = ""
    unit: str = ""
    direction: str | None = None
    intervals: bool = False
    spread: bool = False

    @property
    def arrow(self) -> str:
        """↑ or ↓, whichever is better; else empty."""
        return ARROWS[self.direction]

    @property
    def name(self) -> str:
        """Title and detail, ``fid_ref [effnet_lite0]``."""
        return f"{self.title} [{self.detail}]" if self.detail else self.title


@dataclass(frozen=True)
class Table:
    """Groups of rows, a rule between groups and above `summary`."""

    columns: tuple[Column, ...]
    groups: tuple[tuple[Row, ...], ...]
    summary: tuple[Row, ...] = ()
    title: str = ""

    @property
    def head(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def rows(self) -> tuple[Row, ...]:
        """All but the summary."""
        return tuple(row for group in self.groups for row in group)

    @property
    def blocks(self) -> tuple[tuple[Row, ...], ...]:
        """The groups, and the summary as the last one."""
        return (*self.groups, self.summary) if self.summary else self.groups


def number(value: float, interval: Interval | None = None, *, bold: bool = False, sd: float | None = None) -> Cell:
    return Cell(format_number(value), bold, float(value), interval, sd=sd)


def row(keys: Sequence[str], values: Iterable[Cell | str]) -> Row:
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in (*keys, *values))


def heads(keys: Sequence[str], values: Sequence[str]) -> tuple[Column, ...]:
    """Plain columns: names on the left, numbers on the right."""
    return (*(Column(title, "key") for title in keys), *(Column(title) for title in values))


def grouped(items: Iterable[T], key: Callable[[T], object], to_row: Callable[[T], Row]) -> tuple[tuple[Row, ...], ...]:
    """A new group wherever the key changes."""
    return tuple(tuple(map(to_row, members)) for _, members in groupby(items, key))
