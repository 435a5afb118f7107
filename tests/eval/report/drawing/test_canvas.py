from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from segquant_bench.eval.render import write_report
from segquant_bench.eval.report.drawing.canvas import FORMATS, figure_text, new_figure, rendered
from tests.eval.report.support import psnr, run, write

BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("form", FORMATS)
def test_a_figure_is_the_same_bytes_each_time(form: str) -> None:
    figures = []
    for _ in range(2):
        figure = new_figure(2, 2)
        figure.subplots().set_title(figure_text("a $x$ <b>"))
        figures.append(rendered(figure, form))
    assert figures[0] == figures[1] and figures[0].startswith(BEGINNINGS[form])
    if form == "svg":
        assert ElementTree.fromstring(figures[0]).tag.endswith("svg")
    if form == "pdf":
        assert b"/Type3" not in figures[0], "no bitmap-like fonts, which journals refuse"


def test_a_report_has_figures_of_the_formats_asked_for(tmp_path: Path) -> None:
    for job, name in enumerate(("rtn", "segquant_g")):
        write(tmp_path / str(job), run(job, name, metrics=(psnr(30.0 + job, (29.0, 32.0)),), weight_bytes=1000 + job))
    found = write_report([tmp_path], grid=False, figures=("svg", "pdf"))
    names = {f"{name}.{form}" for name in ("metrics", "bytes") for form in ("svg", "pdf")}
    assert {name for name in found if name.endswith(FORMATS)} == names
    assert all(found[name].read_bytes().startswith(BEGINNINGS[name[-3:]]) for name in names)
