"""table.tex as a float: the columns asked for, in a column's width, as LaTeX sets it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from segquant_bench.eval.cli import main
from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.report.main_table.paper_table import paper_table
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.results import EvalResult, RunResult
from segquant_bench.eval.tables.render_latex import to_latex, to_latex_float
from tests.eval.report.support import psnr, run, write

COLUMN = 246.0
"""Points of a column in common conference styles."""


def _runs(count: int = 4) -> list[RunResult]:
    fid = [EvalResult(f"fid_ref[{net}]", 12.3, 2, "lower", (11.1, 13.4), net, "reference") for net in ("a_b", "c")]
    return [
        run(job, f"method_{job}", metrics=(psnr(30.0 + job, (29.0, 41.0)), *fid), weight_bytes=1000 + 200 * job)
        for job in range(count)
    ]


def test_columns_are_those_asked_for_in_that_order() -> None:
    runs, whole = _runs(), results_table(_runs())
    table = paper_table(runs, ("weights", "psnr"))
    assert [column.title for column in table.columns] == ["precision", "method", "weights", "psnr"]
    places = [whole.head.index(name) for name in table.head]
    assert table.rows == tuple(tuple(row[place] for place in places) for row in whole.rows)
    assert paper_table(runs, ("weight_mb",)).head[-1] == "weights", "as table.csv calls it"
    assert paper_table(runs, ("fid_ref",)).head[2:] == ("fid_ref [a_b]", "fid_ref [c]"), "by every network"
    assert paper_table(runs, ("fid_ref [c]", "n")).head[2:] == ("fid_ref [c]", "n")
    assert paper_table(runs).head == results_table(runs, judged=True).head
    with pytest.raises(EvalError, match=r"the table has no column 'pnsr'; did you mean 'psnr'"):
        paper_table(runs, ("pnsr",))


def test_caption_and_label_cannot_be_commands() -> None:
    table = paper_table(_runs(), ("psnr",))
    text = to_latex_float(table, r"50% of \input{x}", "tab:main")
    assert r"\caption{50\% of \textbackslash{}input\{x\}}\label{tab:main}" in text
    with pytest.raises(EvalError, match="a label is letters"):
        to_latex_float(table, label="a}b")


def test_the_command_writes_one_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for job, made in enumerate(_runs()):
        write(tmp_path / str(job), made)
    shared = [str(tmp_path), "--no-grid", "--figures", "none"]
    assert main([*shared, "--columns", "psnr,weights", "--caption", "Main", "--label", "tab:x"]) == 0
    text = (tmp_path / "table.tex").read_text()
    assert text.count(r"\begin{table}") == 1 and r"\caption{Main}\label{tab:x}" in text and "fid" not in text
    assert not list(tmp_path.glob("*.png"))
    assert main([*shared, "--columns", "speed"]) == 2
    assert main([*shared, "--figures", "gif"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "the table has no column 'speed'" in told[-2] and "takes png, svg, pdf or none, 'gif'" in told[-1]


needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")


def _compile(text: str, folder: Path, *, columns: int) -> str:
    """The log of a document with the table; every overfull box is in it."""
    style = "twocolumn" if columns == 2 else "onecolumn"
    packages = "".join(rf"\usepackage{{{name}}}" for name in ("booktabs", "graphicx", "longtable"))
    size = rf"\setlength{{\textwidth}}{{{2 * COLUMN + 10 if columns == 2 else COLUMN * 2}pt}}"
    document = (
        rf"\documentclass[{style}]{{article}}{packages}{size}\hfuzz=0.1pt\begin{{document}}See \ref{{tab:x}}.{text}"
    )
    (folder / "a.tex").write_text(document + r"\typeout{width=\the\columnwidth}\end{document}", encoding="utf-8")
    for _ in range(2):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "a.tex"],
            cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
    return (folder / "a.log").read_text(errors="replace")


WIDE = ("psnr", "fid_ref", "weights", "compression", "layer error")


@needs_latex
@pytest.mark.parametrize("columns", [("psnr",), WIDE])
def test_a_float_fits_a_column(tmp_path: Path, columns: tuple[str, ...]) -> None:
    names = ("rtn", "a_method", "100%", "segquant_g")
    runs = [run(job, name, metrics=made.metrics, layer_errors={"a": 0.1 + job / 10, "b": 0.2})
            for job, (name, made) in enumerate(zip(names, _runs(), strict=True))]  # fmt: skip
    table = paper_table(runs, columns)
    log = _compile(to_latex_float(table, "A caption", "tab:x"), tmp_path, columns=2)
    assert "Overfull" not in log and "undefined" not in log
    assert (tmp_path / "a.pdf").stat().st_size > 1000
    bare = _compile(rf"\noindent\label{{tab:x}}{to_latex(table)}", tmp_path, columns=2)
    assert ("Overfull" in bare) is (columns == WIDE), "where it is wider than the column, it is made to fit"


@needs_latex
def test_a_longtable_goes_over_pages_with_its_heads(tmp_path: Path) -> None:
    table = paper_table(_runs(120), ("psnr", "weights"))
    text = to_latex_float(table, "A caption", "tab:x", longtable=True)
    log = _compile(text, tmp_path, columns=1)
    pages = re.search(r"Output written on a.pdf \((\d+) pages", log)
    assert pages is not None and int(pages[1]) >= 3
    assert "Overfull" not in log and "undefined" not in log
