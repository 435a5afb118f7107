from __future__ import annotations

import html

from segquant_bench.eval.tables.numbers import format_interval, format_spread
from segquant_bench.eval.tables.table import Cell, Column, Row, Table
from segquant_bench.texts import plain

ROWS_ON_LINES = "results"


def to_html(table: Table, css: str = "") -> str:
    """A `<table>`, intervals below values; with a title, in a scrolling box."""
    end = "\n" if css == ROWS_ON_LINES else ""
    head = "".join(map(_head, table.columns))
    body = end.join(
        _row(table.columns, row, starts=number > 0 and index == 0)
        for number, block in enumerate(table.blocks)
        for index, row in enumerate(block)
    )
    opening = f"<table class='{escape(css)}'>" if css else "<table>"
    text = f"{opening}{end}<thead><tr>{head}</tr></thead>{end}<tbody>{end}{body}{end}</tbody></table>"
    return f"<h3>{escape(table.title)}</h3>\n<div class='wide'>{text}</div>" if table.title else text


def _head(column: Column) -> str:
    if column.kind != "number":
        return f"<th scope='col' class='key'>{escape(column.name)}</th>"
    arrow = f"\N{NO-BREAK SPACE}{column.arrow}" if column.arrow else ""
    below = " ".join(part for part in (column.detail, column.unit) if part)
    small = f"<br><small>{escape(below)}</small>" if below else ""
    return f"<th scope='col'>{escape(column.title)}{arrow}{small}</th>"


def _row(columns: tuple[Column, ...], row: Row, *, starts: bool) -> str:
    cells = "".join(_cell(column, cell) for column, cell in zip(columns, row, strict=True))
    return f"<tr class='group'>{cells}</tr>" if starts else f"<tr>{cells}</tr>"


def _cell(column: Column, cell: Cell) -> str:
    text = cell_content(cell)
    return f"<td>{text}</td>" if column.kind == "number" else f"<td class='key'>{text}</td>"


def cell_content(cell: Cell) -> str:
    """A cell's text, its interval below."""
    text = f"<b>{escape(cell.text)}</b>" if cell.bold else escape(cell.text)
    if cell.verdict:
        text = f"<span class='{escape(cell.verdict)}'>{text}</span>"
    if cell.value is not None:
        text += escape(format_spread(cell.sd, cell.value))
    if cell.value is not None and cell.interval is not None:
        text += f"<br><small>{escape(format_interval(cell.interval, cell.value))}</small>"
    return text


def escape(text: str) -> str:
    """Text on one line, safe in elements and quoted attributes."""
    return html.escape(plain(text))
