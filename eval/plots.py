"""One figure of the main numbers with their intervals: a panel per metric, a line per method."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from eval.columns import Cell, Column, columns
from eval.order import is_ours, labels
from eval.results import RunResult

SHOWN = ("fid_ref", "psnr", "layer_error", "output_error")
COLOURS = {True: "#c2410c", False: "#475569"}


def metric_plot(runs: Sequence[RunResult]) -> bytes | None:
    """A PNG for quantized runs of one model, dataset and seed; None where there is nothing to draw.

    Several models or seeds do not share an axis, so only the first group in table order is drawn.
    """
    quantized = [run for run in runs if not run.is_float]
    if not quantized:
        return None
    first = quantized[0]
    quantized = [r for r in quantized if (r.model, r.dataset, r.seed) == (first.model, first.dataset, first.seed)]
    shown = [c for base in SHOWN for c in columns(quantized) if c.key.split("[")[0] == base]
    if not shown:
        return None
    # The object interface draws without a display and without global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * len(shown) + 1.6, 0.34 * len(quantized) + 1.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    names = labels(quantized)
    ticks = [f"{names[id(run)]}  {run.precision}" for run in quantized]
    for panel, column in zip(panels, shown, strict=True):
        _draw(panel, column, quantized)
    panels[0].set_yticks(range(len(quantized)), ticks)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(panel: object, column: Column, runs: Sequence[RunResult]) -> None:
    for y, run in enumerate(runs):
        cell = column.cell(run)
        if cell is None or math.isinf(cell.value):
            continue
        panel.errorbar(
            cell.value, y, xerr=_whiskers(cell), fmt="o", color=COLOURS[is_ours(run.quantizer)],
            markersize=6, capsize=3, elinewidth=1.6,
        )  # fmt: skip
    for y in range(1, len(runs)):
        if runs[y].precision != runs[y - 1].precision:
            panel.axhline(y - 0.5, color="#cbd5e1", linewidth=1)
    unit = f", {column.unit}" if column.unit else ""
    better = {"lower": "← better", "higher": "better →"}[column.direction]
    panel.set_title(f"{column.title}{unit}\n{better}", fontsize=10)
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
