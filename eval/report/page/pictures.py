"""Pictures inside of the page: some prompts of every run, without loss, so that differences are true."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from segquant_bench.eval.report.drawing.grid import GridColumn, grid_columns, read_picture, shown_prompts
from segquant_bench.eval.report.page.links import is_below
from segquant_bench.eval.report.page.rows import PageTable
from segquant_bench.eval.report.runs.groups import data_key
from segquant_bench.eval.report.runs.labels import places
from segquant_bench.eval.results import RunResult

SIDES = (256, 128, 64)
"""Pixels of the longer side, at most; the largest that the budget has room for."""
BUDGET = 24_000_000
"""Bytes of all pictures together, before base64: what browsers open in a second or two."""


@dataclass(frozen=True)
class Strip:
    """The pictures of one row of the table (None: those of the unquantized model), as base64 of PNGs."""

    row: int | None
    pictures: tuple[str, ...]
    folder: str
    """Where they are, seen from the run's folder; empty where that is elsewhere."""


@dataclass(frozen=True)
class PictureSet:
    """Runs of the same prompts and latents; `indices` are those of the prompts, `size` pixels as made."""

    title: str
    indices: tuple[int, ...]
    prompts: tuple[str, ...]
    side: int
    size: tuple[int, int]
    strips: tuple[Strip, ...]

    def to_dict(self) -> dict[str, Any]:
        """All but the pictures."""
        return {
            "title": self.title,
            "indices": self.indices,
            "prompts": self.prompts,
            "side": self.side,
            "size": self.size,
            "strips": [[strip.row, strip.folder] for strip in self.strips],
        }


def picture_sets(table: PageTable, rows: int) -> list[PictureSet]:
    """At most `rows` prompts, fewer and smaller ones where `BUDGET` has no room; EvalError if pictures are missing."""
    groups: dict[object, list[int]] = {}
    for number, row in enumerate(table.rows):
        groups.setdefault(data_key(row.run), []).append(number)
    titles = places([row.run for row in table.rows])
    members = [(titles[id(table.rows[each[0]].run)], each) for each in groups.values()]
    for side in SIDES:
        first = [_set(table, title, each, 1, side) for title, each in members]
        size = sum(len(strip.pictures[0]) * 3 // 4 for found in first for strip in found.strips)
        if size <= BUDGET:
            break
    count = max(1, min(rows, BUDGET // max(size, 1)))
    return first if count == 1 else [_set(table, title, each, count, side) for title, each in members]


def _set(table: PageTable, title: str, numbers: Sequence[int], rows: int, side: int) -> PictureSet:
    runs = [table.rows[number].run for number in numbers]
    columns = grid_columns(runs)
    reference = len(columns) - len(runs)  # 1 where the unquantized model's pictures are no run's
    indices = shown_prompts(runs[0].prompts, rows)
    strips = [
        Strip(None if place < reference else numbers[place - reference],
              tuple(_encoded(column, index, side) for index in indices),
              "" if place < reference else _folder(runs[place - reference], column))
        for place, column in enumerate(columns)
    ]  # fmt: skip
    size = read_picture(columns[0], indices[0]).size
    return PictureSet(
        title, tuple(indices), tuple(runs[0].prompts[index] for index in indices), min(side, max(size)), size,
        tuple(strips),
    )  # fmt: skip


def _folder(run: RunResult, column: GridColumn) -> str:
    home = run.path.parent
    return column.folder.relative_to(home.resolve()).as_posix() if is_below(column.folder, home) else ""


def _encoded(column: GridColumn, index: int, side: int) -> str:
    picture = read_picture(column, index)
    longer = max(picture.size)
    if longer > side:
        width, height = (max(round(edge * side / longer), 1) for edge in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX if longer % side == 0 else None)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
