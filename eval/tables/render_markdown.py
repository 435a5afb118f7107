from __future__ import annotations

import re

from segquant_bench.eval.tables.numbers import format_interval, format_spread
from segquant_bench.eval.tables.table import Cell, Column, Table
from segquant_bench.texts import plain

_MARKS = re.compile(
    r"""[|*\\`$~]             # cells, bold, code, mathematics, strokes
    | <(?=[A-Za-z/!?])      # tags
    | (?<!\w)_ | _(?!\w)    # italics; not within a word
    | \](?=[(\[])           # the end of a link's text
    | &(?=\#?\w+;)          # entities
    """,
    re.VERBOSE,
)


def to_markdown(table: Table) -> str:
    """Title as a heading; intervals behind their values."""
    align = ["---" if column.kind == "key" else "---:" for column in table.columns]
    lines = [[_head(column) for column in table.columns], align]
    lines += [[_cell(cell) for cell in row] for block in table.blocks for row in block]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    return f"## {escape(table.title)}\n\n{text}" if table.title else text


def _head(column: Column) -> str:
    unit = f" ({escape(column.unit)})" if column.unit else ""
    return f"{escape(column.name)}{unit} {column.arrow}".rstrip()


def _cell(cell: Cell) -> str:
    text = f"**{escape(cell.text)}**" if cell.bold else escape(cell.text)
    if cell.value is not None:
        text += format_spread(cell.sd, cell.value)
    if cell.value is None or cell.interval is None:
        return text
    return f"{text} {format_interval(cell.interval, cell.value)}"


def escape(text: str) -> str:
    return _MARKS.sub(r"\\\g<0>", plain(text))


def code(text: str) -> str:
    return f"`{plain(text).replace('`', chr(39))}`"
