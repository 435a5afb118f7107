"""The table of all runs, as HTML that a script makes sortable."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from segquant_bench.eval.failures import Failure
from segquant_bench.eval.report.main_table.failed import TITLE, failed_table
from segquant_bench.eval.report.page.links import config_link, folder_link, link
from segquant_bench.eval.report.page.rows import PageRow, PageTable
from segquant_bench.eval.report.runs.labels import is_subject
from segquant_bench.eval.tables.render_html import cell_content, escape
from segquant_bench.eval.tables.table import Column

AT_ONCE = 200
"""Rows that are laid out before the reader asks for more."""


def results_html(table: PageTable, folder: Path) -> str:
    """A `<tbody>` per group with a heading; `folder` is that of the page."""
    width = len(table.keys) + len(table.quantities) + 1
    head = "".join(_key_head(column) for column in table.keys)
    head += "".join(_number_head(quantity.head, quantity.judged) for quantity in table.quantities)
    parts = [
        "<div class='wide' tabindex='-1'><table class='results' id='results-table'>",
        f"<caption>{len(table.rows)} runs. Brackets: 95 % intervals. Click a number to see what it was paired with."
        "</caption>",
        f"<thead><tr>{head}<th scope='col' class='key files'>files</th></tr></thead>",
    ]
    numbered = enumerate(table.rows)
    for group, members in groupby(numbered, lambda pair: pair[1].group):
        parts.append(f"<tbody><tr class='heading'><th scope='rowgroup' colspan='{width}'>{escape(group)}</th></tr>")
        parts += [_row(number, row, table.keys, folder) for number, row in members]
        parts.append("</tbody>")
    return "\n".join([*parts, "</table></div>"])


def _key_head(column: Column) -> str:
    css = " class='key'" if column.kind == "key" else ""
    return f"<th scope='col'{css}>{escape(column.name)}</th>"


def _number_head(column: Column, judged: bool) -> str:
    arrow = f"\N{NO-BREAK SPACE}{column.arrow}" if column.arrow else ""
    below = " ".join(part for part in (column.detail, column.unit) if part)
    small = f" <small>{escape(below)}</small>" if below else ""
    kind = "" if judged else " class='cost'"
    return f"<th scope='col'{kind}>{escape(column.title)}{arrow}{small}</th>"


def _row(number: int, row: PageRow, keys: Sequence[Column], folder: Path) -> str:
    first, *others = row.keys
    cells = [f"<th scope='row' class='key'>{escape(first.text)}</th>"]
    for column, cell in zip(keys[1:], others, strict=True):
        css = " class='key'" if column.kind == "key" else ""
        cells.append(f"<td{css}>{escape(cell.text)}</td>")
    cells += [f"<td>{cell_content(cell)}</td>" for cell in row.cells]
    marks = [name for name, holds in (("ours", is_subject(row.run)), ("late", number >= AT_ONCE)) if holds]
    css = f" class='{' '.join(marks)}'" if marks else ""
    return (
        f"<tr data-row='{number}'{css}>{''.join(cells)}<td class='key files'>{_files(row.run.path, folder)}</td></tr>"
    )


def _files(record: Path, folder: Path) -> str:
    config = config_link(record, folder)
    found = [("folder", folder_link(record, folder)), ("config", config), ("numbers", link(record, folder))]
    return " ".join(f"<a href='{escape(url)}'>{name}</a>" for name, url in found if url)


def failed_html(failures: Sequence[Failure], folder: Path) -> str:
    """Failed runs, with links to their folders."""
    table = failed_table(failures)
    heads = "".join(f"<th scope='col' class='key'>{escape(column.title)}</th>" for column in table.columns)
    rows = []
    for failure, (first, *others) in zip(failures, table.rows, strict=True):
        name = f"<a href='{escape(folder_link(failure.path, folder))}'>{escape(first.text)}</a>"
        cells = "".join(f"<td class='key'>{escape(cell.text)}</td>" for cell in others)
        rows.append(f"<tr><th scope='row' class='key'>{name}</th>{cells}</tr>")
    caption = f"<caption>{len(failures)} runs that ended without results.</caption>"
    body = "\n".join(rows)
    return (
        f"<section id='failed' aria-labelledby='failed-head'><h2 id='failed-head'>{TITLE}</h2>\n<div class='wide'>"
        f"<table class='failed'>{caption}<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div></section>"
    )
