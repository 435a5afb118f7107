"""The main numbers: a panel per precision and metric, a line per method, pale dots for calibration seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segquant_bench.eval.metrics.registry import known_metric, place
from segquant_bench.eval.report.drawing.canvas import COMMON, figure_text, is_too_tall, more_width, new_figure
from segquant_bench.eval.report.main_table.columns import Quantity, columns
from segquant_bench.eval.report.runs.groups import group_key, quantized_parts
from segquant_bench.eval.report.runs.known import is_ours
from segquant_bench.eval.report.runs.labels import labels, places
from segquant_bench.eval.report.runs.sizes import by_bytes
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.table import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERRORS = ("layer_error", "output_error")
COLOURS = {True: "#c2410c", False: "#475569"}


def metric_plot(runs: Sequence[RunResult]) -> Figure | None:
    """None if there is nothing to draw, or too much."""
    quantized = by_bytes([run for run in runs if not run.is_float])
    shown = _shown(columns(quantized))
    if not shown:
        return None
    groups: dict[object, list[RunResult]] = {}
    for run in quantized:
        groups.setdefault(group_key(run), []).append(run)
    titles = group_titles([members[0] for members in groups.values()], quantized)
    # a row is as high as its methods need, and as its title does, which is set upright
    heights = [
        max(0.3 * len(members) + 0.75, 0.1 * max(map(len, title.split("\n"))) + 0.35)
        for members, title in zip(groups.values(), titles, strict=True)
    ]
    if is_too_tall("metrics.png", sum(heights)):
        return None
    names = labels(quantized)
    figure = new_figure(3.3 * len(shown) + 1.6 + more_width(names.values()), sum(heights) + 0.4, wspace=0.06)
    panels = figure.subplots(len(groups), len(shown), sharey="row", squeeze=False, height_ratios=heights)
    for number, (row, members) in enumerate(zip(panels, groups.values(), strict=True)):
        for panel, quantity in zip(row, shown, strict=True):
            _draw(panel, quantity, members)
            if not number:
                panel.set_title(_head(quantity), fontsize=10)
        row[0].set_yticks(range(len(members)), [figure_text(names[id(run)]) for run in members])
        row[0].set_ylabel(titles[number], fontsize=10, fontweight="bold")
    figure.align_ylabels(panels[:, 0])
    return figure


def _shown(quantities: Sequence[Quantity]) -> list[Quantity]:
    main = [q for q in quantities if (metric := known_metric(q.key)) is not None and metric.headline]
    return [*sorted(main, key=lambda q: place(q.key)), *(q for q in quantities if q.key in ERRORS)]


def group_titles(some: Sequence[RunResult], runs: Sequence[RunResult]) -> list[str]:
    """Of `some` of the runs: where and at which precision, a line each."""
    where, several = places(runs), len({quantized_parts(run) for run in runs}) > 1
    found = []
    for run in some:
        told = [part for part in where[id(run)].split(", ") if part]
        told += ["+".join(quantized_parts(run))] if several else []
        found.append("\n".join(figure_text(part, COMMON) for part in [*told, run.precision]))
    return found


def _head(quantity: Quantity) -> str:
    head = quantity.head
    unit = f", {head.unit}" if head.unit else ""
    better = "← better" if head.direction == "lower" else "better →"
    return f"{figure_text(head.name + unit, COMMON)}\n{better}"


def _draw(panel: Axes, quantity: Quantity, runs: Sequence[RunResult]) -> None:
    for y, run in enumerate(runs):
        cell = quantity.cell(run)
        if cell is None or cell.value is None or math.isinf(cell.value):
            continue
        cells = [each for one in run.seed_runs if (each := quantity.cell(one)) is not None]
        seeds = [each.value for each in cells if each.value is not None]
        panel.plot(seeds, [y] * len(seeds), ".", color=COLOURS[is_ours(run.quantizer)], alpha=0.4, markersize=5)
        panel.errorbar(
            cell.value, y, xerr=_whiskers(cell), fmt="o", color=COLOURS[is_ours(run.quantizer)],
            markersize=6, capsize=3, elinewidth=1.6,
        )  # fmt: skip
    panel.set_ylim(len(runs) - 0.5, -0.5)
    panel.locator_params(axis="x", nbins=4)
    panel.grid(axis="x", color="#e2e8f0")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _whiskers(cell: Cell) -> list[list[float]] | None:
    if cell.interval is None or cell.value is None:
        return None
    low, high = cell.interval
    return [[max(cell.value - low, 0.0)], [max(high - cell.value, 0.0)]]
