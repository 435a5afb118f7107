from __future__ import annotations

import csv
import io
from functools import lru_cache

from segquant_bench.eval.tables.table import Cell, Column, Table
from segquant_bench.texts import plain

_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet runs a cell for that starts with it."""


def to_csv(table: Table) -> str:
    """Numbers at full precision, interval edges in their own columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")  # quotes commas, quotes and line ends itself
    writer.writerow([_text(name) for column in table.columns for name in _names(column)])
    for block in table.blocks:
        for row in block:
            pairs = zip(table.columns, row, strict=True)
            writer.writerow([text for column, cell in pairs for text in _texts(column, cell)])
    return out.getvalue()


def _names(column: Column) -> list[str]:
    edges = [f"{column.title}.low", f"{column.title}.high"] if column.intervals else []
    return [column.title, *edges, *([f"{column.title}.sd"] if column.spread else [])]


def _texts(column: Column, cell: Cell) -> list[str]:
    value = _text(cell.text) if cell.value is None else repr(cell.value)
    edges = ["", ""] if cell.interval is None else [repr(edge) for edge in cell.interval]
    spread = "" if cell.sd is None else repr(cell.sd)
    return [value, *(edges if column.intervals else []), *([spread] if column.spread else [])]


@lru_cache(maxsize=1 << 14)  # names of layers and methods stand in a hundred thousand lines
def _text(text: str) -> str:
    """One line; an apostrophe before what would be a formula."""
    line = plain(text)
    return f"'{line}" if line.startswith(_FORMULA) and not _is_number(line) else line


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
