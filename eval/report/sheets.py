"""Small tables of text, as Markdown, LaTeX and HTML: what the paper's tables other than the main one are made of."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from segquant_bench.eval.report.tables import DASH, latex_escape


@dataclass(frozen=True)
class Entry:
    """One cell: its text, and whether it is set bold."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Sheet:
    """A titled table; the first `keys` columns are names, the others numbers. `summary` rows stand under a rule."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    summary: tuple[tuple[Entry, ...], ...] = ()
    keys: int = 1


def row(keys: Sequence[str], values: Sequence[Entry | str]) -> tuple[Entry, ...]:
    """Plain texts and entries as one row."""
    return tuple(cell if isinstance(cell, Entry) else Entry(cell) for cell in (*keys, *values))


def sheet_markdown(sheet: Sheet) -> str:
    """A heading and a GitHub table."""
    align = ["---"] * sheet.keys + ["---:"] * (len(sheet.head) - sheet.keys)
    lines = [list(map(_markdown, sheet.head)), align]
    for cells in (*sheet.rows, *sheet.summary):
        lines.append([f"**{_markdown(cell.text)}**" if cell.bold else _markdown(cell.text) for cell in cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {sheet.title}\n\n{table}\n"


def _markdown(text: str) -> str:
    return re.sub(r"([|*\\])", r"\\\1", text)


def sheet_latex(sheet: Sheet) -> str:
    r"""A booktabs tabular (needs ``\usepackage{booktabs}``), its title a comment."""
    spec = "l" * sheet.keys + "r" * (len(sheet.head) - sheet.keys)
    lines = [f"% {sheet.title}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    lines += [" & ".join(map(_latex, sheet.head)) + r" \\", r"\midrule"]
    lines += [_latex_row(cells) for cells in sheet.rows]
    if sheet.summary:
        lines += [r"\midrule", *(_latex_row(cells) for cells in sheet.summary)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_row(cells: Sequence[Entry]) -> str:
    return " & ".join(rf"\textbf{{{_latex(cell.text)}}}" if cell.bold else _latex(cell.text) for cell in cells) + r" \\"


def _latex(text: str) -> str:
    return "--" if text == DASH else latex_escape(text)


def sheet_html(sheet: Sheet) -> str:
    """A heading and a `<table>`, wide ones in a box that scrolls."""
    head = "".join(f"<th{_key(index, sheet)}>{html.escape(text)}</th>" for index, text in enumerate(sheet.head))
    body = [f"<tr>{_html_cells(cells, sheet)}</tr>" for cells in sheet.rows]
    for index, cells in enumerate(sheet.summary):
        start = " class='group'" if index == 0 else ""
        body.append(f"<tr{start}>{_html_cells(cells, sheet)}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<h3>{html.escape(sheet.title)}</h3>\n<div class='wide'>{table}</div>"


def _html_cells(cells: Sequence[Entry], sheet: Sheet) -> str:
    found = []
    for index, cell in enumerate(cells):
        text = html.escape(cell.text)
        found.append(f"<td{_key(index, sheet)}>{f'<b>{text}</b>' if cell.bold else text}</td>")
    return "".join(found)


def _key(index: int, sheet: Sheet) -> str:
    return " class='key'" if index < sheet.keys else ""
