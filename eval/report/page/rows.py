"""The rows of the page: what table, charts and pictures show of each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant_bench.eval.report.main_table.columns import Quantity, columns
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.runs.groups import quantized_parts, sort_runs
from segquant_bench.eval.report.runs.labels import is_subject, labels, places
from segquant_bench.eval.report.runs.sizes import by_bytes
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.numbers import joined
from segquant_bench.eval.tables.table import Cell, Column

FLOAT = "unquantized"
NO_PRECISION = "no precision"


@dataclass(frozen=True)
class PageRow:
    """One run.

    Attributes:
        group: of runs that may be compared, as a heading.
        keys: texts of the key columns; `cells` numbers.
    """

    run: RunResult
    label: str
    group: str
    keys: tuple[Cell, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PageTable:
    """Key columns (the method first), quantities, and rows group by group in the order of bytes."""

    keys: tuple[Column, ...]
    quantities: tuple[Quantity, ...]
    rows: tuple[PageRow, ...]

    def by_path(self) -> dict[Path, int]:
        """A row's number by its run's `results.json`."""
        return {row.run.path: number for number, row in enumerate(self.rows)}


def page_table(runs: Sequence[RunResult]) -> PageTable:
    ordered = by_bytes(sort_runs(runs))
    table, quantities = results_table(runs), columns(ordered)
    names, groups = labels(ordered), _groups(ordered)
    count = len(table.columns) - len(quantities)
    method = next(index for index, column in enumerate(table.columns) if column.title == "method")
    order = [method, *(index for index in range(count) if index != method)]
    rows = [
        PageRow(run, names[id(run)], groups[id(run)], tuple(cells[index] for index in order), cells[count:])
        for run, cells in zip(ordered, table.rows, strict=True)
    ]
    return PageTable(tuple(table.columns[index] for index in order), tuple(quantities), tuple(rows))


def _groups(runs: Sequence[RunResult]) -> dict[int, str]:
    """By `id` of the run, its group's heading: precision, place, and components where these differ."""
    where = places(runs)
    several = len({quantized_parts(run) for run in runs if not run.is_float}) > 1
    found = {}
    for run in runs:
        parts = "+".join(quantized_parts(run)) if several and not run.is_float else ""
        found[id(run)] = joined(FLOAT if run.is_float else run.precision or NO_PRECISION, where[id(run)], parts)
    return found


def rows_data(table: PageTable) -> dict[str, Any]:
    """For scripts: numbers with intervals, and what charts need to know of each run."""
    return {
        "columns": [_column(quantity) for quantity in table.quantities],
        "keys": [column.title for column in table.keys],
        "rows": [
            {
                "label": row.label,
                "group": row.group,
                "precision": row.run.precision,
                "ours": is_subject(row.run),
                "float": row.run.is_float,
                "values": [_value(cell) for cell in row.cells],
            }
            for row in table.rows
        ],
    }


def _column(quantity: Quantity) -> dict[str, Any]:
    head = quantity.head
    return {
        "key": quantity.key, "title": head.title, "detail": head.detail, "unit": head.unit,
        "better": head.direction or "", "judged": quantity.judged,
    }  # fmt: skip


def _value(cell: Cell) -> list[float] | None:
    if cell.value is None:
        return None
    return [cell.value, *(cell.interval or ())]
