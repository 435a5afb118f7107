"""Error against bytes: the front, and labels that one can read."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from matplotlib.text import Text

from segquant_bench.eval.report.drawing import bytes_plot as plot
from segquant_bench.eval.report.drawing.bytes_plot import points, spread
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.results import RunResult
from tests.eval.report.support import psnr, run


def _runs(count: int, seed: int = 0) -> list[RunResult]:
    """Rows that crowd as a real table's do: most within a few percent of bytes and errors."""
    generator = random.Random(seed)
    found = []
    for job in range(count):
        value, error = 30 + generator.gauss(0, 2), 0.1 * 2 ** generator.gauss(0, 1)
        size, settings = generator.choice((8_930_000, 9_100_000)), {"quantizer": {"rank": job}}
        rows, judged = (0.9 * error, error, 1.1 * error), (psnr(value, (value - 0.4, value + 0.4)),)
        name = "segquant_g" if job % 5 == 0 else f"a_method_{job}"
        given = {"output_error": error, "per_row_output_errors": rows, "config": settings}
        found.append(run(job, name, weight_bytes=size, metrics=judged, **given))
    return found


@pytest.mark.parametrize("key", ["psnr", "output_error"])
def test_the_front_is_what_no_other_run_beats(key: str) -> None:
    runs = _runs(40)
    (quantity,) = (each for each in columns(runs) if each.key == key)
    found = points(quantity, runs, {id(each): each.name for each in runs})
    better = (lambda a, b: a > b) if key == "psnr" else (lambda a, b: a < b)
    for point in found:
        beaten = any(
            (other.x <= point.x and better(other.y, point.y)) or (other.x < point.x and other.y == point.y)
            for other in found
        )
        assert point.front == (not beaten)
    assert 0 < sum(point.front for point in found) < 5


def _squares(heights: Sequence[float], wanted: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(heights, wanted, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_heights_rise_stay_apart_and_near(seed: int) -> None:
    generator = random.Random(seed)
    wanted = sorted(generator.random() ** 2 for _ in range(25))
    found = spread(wanted, 0.03)
    assert all(b - a > 0.03 - 1e-9 for a, b in itertools.pairwise(found)) and found[0] > -1e-9 and found[-1] <= 1.0
    others = [[height + step * (1 - 2 * found[i]) for i, height in enumerate(found)] for step in (0.01, -0.01)]
    for other in others:  # closer together, or further apart
        if all(b - a >= 0.03 for a, b in itertools.pairwise(other)) and other[0] >= 0 and other[-1] <= 1:
            assert _squares(other, wanted) >= _squares(found, wanted) - 1e-12
    assert spread([0.2, 0.5, 0.9], 0.03) == pytest.approx([0.2, 0.5, 0.9]) and spread([], 0.1) == []
    assert spread([0.5] * 3, 0.9) == pytest.approx([0.0, 0.5, 1.0])


def test_forty_labels_do_not_touch() -> None:
    figure = plot.bytes_plot(_runs(40))
    assert figure is not None
    figure.draw_without_rendering()
    for panel in figure.axes:
        boxes = [Text.get_window_extent(text) for text in panel.texts]  # without their lines
        assert len(boxes) == 40
        frame = figure.bbox
        assert all(
            frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes
        )
        assert not any(a.overlaps(b) for a, b in itertools.combinations([box.shrunk(0.95, 0.85) for box in boxes], 2))
        assert min(box.x0 for box in boxes) > panel.get_window_extent().x1
    assert len(figure.axes) == 2


def test_no_figure_without_two_sizes_of_a_group() -> None:
    assert plot.bytes_plot(_runs(1)) is None and plot.bytes_plot([run(0, "none")]) is None
    assert plot.bytes_plot([run(0, "rtn", weight_bytes=None), run(1, "gptq", weight_bytes=None)]) is None
