"""One table in four formats."""

from __future__ import annotations

import csv
import html
import io
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from segquant_bench.eval.tables import render_html, render_latex, render_markdown
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.render_html import to_html
from segquant_bench.eval.tables.render_latex import to_latex
from segquant_bench.eval.tables.render_markdown import to_markdown
from segquant_bench.eval.tables.table import DASH, Cell, Column, Table, grouped, heads, number, row

NASTY = "a|b*c\\d <i>&\"'</i> 50% #1 x_y {z} ~ ^ $ ×"
TABLE = Table(
    (
        Column("method", "key"),
        Column("n", "count"),
        Column("fid", detail="net", direction="lower", intervals=True),
        Column("psnr", unit="dB", direction="higher"),
    ),
    (
        ((Cell("rtn"), Cell("8"), number(1 / 3, (0.25, 0.5)), Cell(DASH)),),
        ((Cell(NASTY), Cell("8"), number(0.125, (0.1, 0.2), bold=True), number(math.inf)),),
    ),
)


def test_markdown() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[:3] == [
        "| method | n | fid [net] ↓ | psnr (dB) ↑ |",
        "| --- | ---: | ---: | ---: |",
        "| rtn | 8 | 0.333 [0.250, 0.500] | – |",
    ]
    assert lines[3].endswith("| 8 | **0.125** [0.100, 0.200] | ∞ |")
    cells = re.split(r"(?<!\\)\|", lines[3])
    assert len(cells) == 6 and re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cells[1].strip()) == NASTY


def test_latex() -> None:
    lines = to_latex(TABLE).splitlines()
    assert r"\begin{tabular}{lrrr}" in lines and lines.count(r"\midrule") == 2
    assert r"method & n & fid [net] $\downarrow$ & psnr (dB) $\uparrow$ \\" in lines
    assert r"rtn & 8 & 0.333 {\scriptsize [0.250, 0.500]} & -- \\" in lines
    (nasty,) = (line for line in lines if line.startswith("a|b"))
    assert r"\textbf{0.125} {\scriptsize [0.100, 0.200]} & $\infty$ \\" in nasty
    assert nasty.count("{") == nasty.count("}") and not re.search(r"(?<!\\)[#%_]", nasty)
    assert to_latex(Table(heads(("a",), ()), (), title="one\ntwo")).startswith("% one two\n")


def test_html_is_well_formed_and_gives_the_text_back() -> None:
    text = to_html(TABLE, "results")
    root = ElementTree.fromstring(text.replace("<br>", "<br/>"))
    body = root.findall("tbody/tr")
    assert [line.get("class") for line in body] == [None, "group"]
    assert body[1][0].text == NASTY and body[1][2].find("b").text == "0.125"
    assert body[0][2].find("small").text == "[0.250, 0.500]"
    assert [cell.get("class") for cell in body[0]] == ["key", "key", None, None]
    assert [head.find("small").text for head in root.findall("thead/tr/th")[2:]] == ["net", "dB"]
    coloured = Table(heads((), ("a",)), (((Cell("worse", verdict="worse"),),),))
    assert "<td><span class='worse'>worse</span></td>" in to_html(coloured)


def test_csv_is_at_full_precision() -> None:
    lines = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert lines[0] == ["method", "n", "fid", "fid.low", "fid.high", "psnr"]
    assert lines[1] == ["rtn", "8", repr(1 / 3), "0.25", "0.5", DASH]
    assert lines[2] == [NASTY, "8", "0.125", "0.1", "0.2", "inf"]


def test_heads_of_csv_are_no_formulas() -> None:
    columns = (Column("=a()", "key"), Column("-b\nc", intervals=True), Column("@d", detail="net"))
    text = to_csv(Table(columns, (((Cell("x"), number(1.0, (0.5, 2.0)), number(2.0)),),)))
    assert text.splitlines()[0] == "'=a(),'-b c,'-b c.low,'-b c.high,'@d"
    assert text.splitlines()[1] == "x,1.0,0.5,2.0,2.0"


def test_summary_is_the_last_block() -> None:
    table = Table(heads(("layer",), ("a",)), ((row(["x"], ["1"]),), (row(["y"], ["2"]),)), (row(["mean"], ["3"]),), "T")
    assert [[cell.text for cell in line] for line in table.rows] == [["x", "1"], ["y", "2"]]
    assert to_latex(table).count(r"\midrule") == 3 and to_markdown(table).startswith("## T\n\n| layer | a |")
    assert to_html(table).startswith("<h3>T</h3>") and to_html(table).count("<tr class='group'>") == 2


def test_rows_are_grouped_where_the_key_changes() -> None:
    found = grouped([1, 3, 2, 5], lambda item: item % 2, lambda item: (Cell(str(item)),))
    assert [[line[0].text for line in group] for group in found] == [["1", "3"], ["2"], ["5"]]


@pytest.mark.parametrize("text", ["plain", NASTY, "", "–"])
def test_escaping_can_be_undone(text: str) -> None:
    assert html.unescape(render_html.escape(text)) == text
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", render_markdown.escape(text)) == text
    assert not re.search(r"(?<!\\)[&%#_]", render_latex.escape(text))
