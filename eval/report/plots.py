"""One figure of the main numbers with their intervals: a panel per precision and metric, a line per method."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from segquant_bench.eval.report.columns import Cell, Column, columns
from segquant_bench.eval.report.labels import group_key, is_ours, labels, places, quantized_parts
from segquant_bench.eval.results import RunResult

SHOWN = ("fid_ref", "psnr", "layer_error", "output_error")
COLOURS = {True: "#c2410c", False: "#475569"}


def metric_plot(runs: Sequence[RunResult]) -> bytes | None:
    """A PNG for quantized runs; None where there is nothing to draw.

    Every precision of every model, dataset and seed is a row of panels with axes of its own: errors at 4 bits are
    many times those at 8.
    """
    quantized = [run for run in runs if not run.is_float]
    shown = [c for base in SHOWN for c in columns(quantized) if c.key.split("[")[0] == base]
    if not shown:
        return None
    # The object interface draws without a display and without global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups: dict[object, list[RunResult]] = {}
    for run in quantized:
        groups.setdefault(group_key(run), []).append(run)
    titles = [_group_name(members[0], quantized) for members in groups.values()]
    # a row is as high as its methods need, and as its title does, which is set upright
    heights = [
        max(0.3 * len(members) + 0.75, 0.1 * max(map(len, title.split("\n"))) + 0.35)
        for members, title in zip(groups.values(), titles, strict=True)
    ]
    figure = Figure(figsize=(3.3 * len(shown) + 1.6, sum(heights) + 0.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(len(groups), len(shown), sharey="row", squeeze=False, height_ratios=heights)
    names = labels(quantized)
    for number, (row, members) in enumerate(zip(panels, groups.values(), strict=True)):
        for panel, column in zip(row, shown, strict=True):
            _draw(panel, column, members)
            if not number:
                panel.set_title(_head(column), fontsize=10)
        row[0].set_yticks(range(len(members)), [names[id(run)] for run in members])
        row[0].set_ylabel(titles[number], fontsize=10, fontweight="bold")
    figure.align_ylabels(panels[:, 0])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _group_name(run: RunResult, runs: Sequence[RunResult]) -> str:
    """The precision, and above it what else tells the groups apart."""
    told = [part for part in places(runs)[id(run)].split(", ") if part]
    told += ["+".join(quantized_parts(run))] if len({quantized_parts(r) for r in runs}) > 1 else []
    return "\n".join([*told, run.precision])


def _head(column: Column) -> str:
    unit = f", {column.unit}" if column.unit else ""
    better = {"lower": "← better", "higher": "better →"}[column.direction]
    return f"{column.title}{unit}\n{better}"


def _draw(panel: object, column: Column, runs: Sequence[RunResult]) -> None:
    for y, run in enumerate(runs):
        cell = column.cell(run)
        if cell is None or math.isinf(cell.value):
            continue
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
    if cell.interval is None:
        return None
    low, high = cell.interval
    return [[max(cell.value - low, 0.0)], [max(high - cell.value, 0.0)]]
