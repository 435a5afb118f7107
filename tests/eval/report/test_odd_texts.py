"""Prompts and names of any characters through every format of a report: well-formed, and no formula, tag or command."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval.cli import main
from segquant_bench.eval.render import write_report
from segquant_bench.eval.report.drawing.canvas import figure_text, new_figure, rendered
from segquant_bench.eval.report.drawing.grid import _font, wrap
from segquant_bench.eval.results import EvalResult, load_results
from segquant_bench.eval.tables import render_html, render_latex, render_markdown
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.table import Cell, Table, heads
from segquant_bench.texts import is_plain, plain
from tests.eval.report.page.support import PageReader
from tests.eval.support import smooth_pictures, write_pictures
from tests.eval.sweep import run_record
from tests.odd_texts import NAMES, PROMPTS

TEXTS = (*NAMES, *PROMPTS)


def test_plain_text_is_one_line_that_files_can_hold() -> None:
    for text in TEXTS:
        line = plain(text)
        assert len(line.splitlines()) == 1 and line.encode() and plain(line) == line
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", line)
    assert plain("a red\r\n\tcat\u2028x") == "a red cat x" and plain("a\u202eb\x00\ud800") == r"a\u202eb\x00\ud800"
    for same in ("🏳️‍🌈 flag", "שלום", "no\u00a0break", "zero\u200bwidth", "mark\u200f", "e\u0301"):
        assert plain(same) == same and is_plain(same)
    assert not is_plain(" a") and not is_plain("a\nb")


def test_csv_has_one_line_a_row_and_no_formula() -> None:
    text = to_csv(Table(heads(("text",), ()), (tuple((Cell(each),) for each in TEXTS),)))
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(text.splitlines()) == len(TEXTS) + 1
    assert [row[0].removeprefix("'") for row in rows[1:]] == [plain(each).removeprefix("'") for each in TEXTS]
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t")) for row in rows)
    numbers = to_csv(Table(heads((), ("n",)), (((Cell("-1"),), (Cell("", value=-0.5),), (Cell("-inf"),)),)))
    assert numbers.splitlines()[1:] == ["-1", "-0.5", "-inf"], "numbers stay numbers"


def test_markdown_shows_the_text() -> None:
    for text in TEXTS:
        line = render_markdown.escape(text)
        shown = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", line)
        assert shown == plain(text)
        assert not re.search(r"(?<!\\)(\\\\)*([|*`$]|<[a-z/])", line), line
    assert render_markdown.escape("segquant_g") == "segquant_g" and render_markdown.escape("_a_") == r"\_a\_"
    assert render_markdown.escape("fid [net] AT&T") == "fid [net] AT&T"
    assert render_markdown.escape("[a](b)") == r"[a\](b)" and render_markdown.escape("&lt;") == r"\&lt;"
    assert render_markdown.code("a`b\nc") == "`a'b c`"


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_shows_the_text() -> None:
    for text in TEXTS:
        reader = _Reader()
        reader.feed(f"<p title='{render_html.escape(text)}'>{render_html.escape(text)}</p>")
        reader.close()
        assert reader.tags == ["p"] and reader.text == plain(text)


def test_latex_has_no_command_of_the_text() -> None:
    for text in TEXTS:
        line = render_latex.escape(text)
        assert "\n" not in line and not re.search(r"(?<!\\)[#%&_]", line)
        commands = set(re.findall(r"\\[A-Za-z]+", line))
        assert commands <= {r"\textbackslash", r"\textasciitilde", r"\textasciicircum", r"\textless", r"\textgreater"}
    rows = tuple((Cell(text), Cell(str(n))) for n, text in enumerate(("[x]", "*", "é – 5 µ"), 1))
    table = Table(heads(("a", "b"), ()), (rows,))
    text = render_latex.to_latex(table)
    assert "\n{}[x] & 1" in text and "\n{}* & 2" in text and not text.startswith(render_latex.ENGINE)
    foreign = Table(heads(("a",), ()), ((((Cell("猫"),)),),))
    assert render_latex.to_latex(foreign).startswith(render_latex.ENGINE)


def test_figures_take_any_label() -> None:
    """Warnings are errors here: also one about a missing glyph, or a label left out of the legend."""
    figure = new_figure(4, 4)
    panel = figure.subplots()
    panel.set_title(figure_text(TEXTS[0]))
    panel.set_yticks(range(len(TEXTS)), [figure_text(text)[:40] for text in TEXTS])
    line = panel.plot([0, 1])[0]
    figure.legend([line] * len(NAMES), [figure_text(name) for name in NAMES])
    assert rendered(figure)[1:4] == b"PNG"
    assert figure_text("rtn +seglinear alpha=0.5") == "rtn +seglinear alpha=0.5" and figure_text("a$b$") == r"a\$b\$"
    assert len(figure_text("x" * 999)) == 160


def test_labels_of_pictures_are_lines_of_their_width() -> None:
    font, began = _font(14), time.monotonic()
    for text in TEXTS:
        lines = wrap(text, font, 100)
        assert all(line and font.getlength(line) <= 100 or len(line) == 1 for line in lines if line.strip())
        assert "".join("".join(lines).split()) == "".join(plain(text).split())
        few = wrap(text, font, 100, 3)
        assert all(font.getlength(line) <= 100 for line in few)
        assert few == lines if len(lines) <= 3 else (len(few) == 3 and few[:2] == lines[:2] and few[2].endswith("…"))
    assert time.monotonic() - began < 20


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of fifty odd prompts whose runs, models and data set have odd names."""
    root = tmp_path_factory.mktemp("odd")
    write_pictures(root / "reference", smooth_pictures(len(PROMPTS), 16, seed=0))
    for job, name in enumerate(NAMES):
        metric = EvalResult(f"psnr{name * (job == 2)}", 20.0 + job, 50, "higher", (19.0, 40.0), name, "reference")
        raw = run_record("none" if not job else name, "w8a8_tensor", 8.0 + job, PROMPTS, [metric.to_dict()])
        raw |= {"name": name, "config_hash": f"odd{job}", "dataset": NAMES[2], "model": NAMES[0] if job < 12 else name}
        raw["git"] = raw["versions"]["torch"] = name
        raw["config"] = {"quantizer": {"_target_": "their_pkg.mine", "note": name}}
        raw["artifacts"] = {"images": "reference", "reference": "reference", "evaluation": "evaluation"}
        (root / str(job)).mkdir()
        (root / str(job) / "reference").symlink_to("../reference")
        (root / str(job) / "results.json").write_text(json.dumps(raw))
    return root


def test_a_whole_report(odd: Path, tmp_path: Path) -> None:
    runs = load_results([odd])
    assert len(runs) == len(NAMES) and all(run.prompts == PROMPTS for run in runs)
    written = write_report([odd], tmp_path / "report", rows=50)
    assert {"report.html", "grid.png", "metrics.png", "table.md", "table.tex", "table.csv"} <= set(written)
    page = written["report.html"].read_text(encoding="utf-8")
    reader = PageReader(page)
    assert not reader.count("i") and not any(name.startswith("on") for _, found in reader.tags for name in found)
    kinds = [found.get("type") for tag, found in reader.tags if tag == "script"]
    assert kinds.count(None) == 1 and set(kinds) == {None, "application/json", "text/plain"}, "one of ours that runs"
    assert reader.data("pictures")[0]["prompts"] == [plain(prompt) for prompt in PROMPTS]
    assert {row["label"] for row in reader.data("rows")["rows"] if not row["float"]} >= {plain(NAMES[1])}
    with Image.open(written["grid.png"]) as picture:
        assert picture.height > 50 * 100 and np.asarray(picture).std() > 1
    table = written["table.md"].read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in rows[: len(NAMES) + 2]}) == 1
    assert "<script>" not in table.replace(r"\<script>", "")
    exported = list(csv.reader(io.StringIO(written["table.csv"].read_text(encoding="utf-8"))))
    assert {len(row) for row in exported} == {len(exported[0])} and len(exported) == len(NAMES) + 1
    assert not any(cell.startswith(("=", "@")) for row in exported for cell in row)


def test_the_command_prints_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\x1b[31m\nb").mkdir()
    assert main([str(tmp_path / "a\x1b[31m\nb")]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told and len(told.strip().splitlines()) == 1
