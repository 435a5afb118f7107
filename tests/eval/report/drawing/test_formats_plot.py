"""All precisions in one figure: who is on the front, by name, in the colour of its method."""

from __future__ import annotations

import itertools
import random

from matplotlib.text import Text

from segquant_bench.eval.report.drawing.formats_plot import FEWEST, formats_plot
from segquant_bench.eval.results import RunResult
from tests.eval.report.support import psnr, run

PRECISIONS = ("w8a8", "w6a6", "w4a8", "w4a6", "mxfp4", "nvfp4", "q4_0", "q8_0")


def _runs(precisions: tuple[str, ...]) -> list[RunResult]:
    generator = random.Random(0)
    found = []
    for job, (name, precision) in enumerate(itertools.product(("rtn", "gptq_mse", "segquant_plus"), precisions)):
        bits, error = int(precision[1]) if precision[1].isdigit() else 4, 2 ** -generator.uniform(2, 7)
        rows, judged = (0.9 * error, error), (psnr(20 - 10 * error, (19.0, 21.0)),)
        given = {"output_error": error, "per_row_output_errors": rows, "weight_bytes": bits * 1_000_000 + 10_000 * job}
        found.append(run(job, name, precision=precision, metrics=judged, **given))
    return found


def test_the_front_over_all_precisions_is_named() -> None:
    runs = _runs(PRECISIONS)
    figure = formats_plot(runs)
    assert figure is not None and len(figure.axes) == 2
    figure.draw_without_rendering()
    beaten = [
        any(o.weight_bytes < r.weight_bytes and o.output_error < r.output_error for o in runs)  # type: ignore[operator]
        for r in runs
    ]
    front = {f"{r.precision} {r.quantizer}" for r, is_beaten in zip(runs, beaten, strict=True) if not is_beaten}
    (panel,) = (each for each in figure.axes if each.get_title().startswith("output error"))
    assert {text.get_text() for text in panel.texts} == front
    boxes = [Text.get_window_extent(text) for text in panel.texts]
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["rtn", "gptq_mse", "segquant_plus"]


def test_few_precisions_have_room_one_below_the_other() -> None:
    assert formats_plot(_runs(PRECISIONS[: FEWEST - 1])) is None and formats_plot([]) is None
