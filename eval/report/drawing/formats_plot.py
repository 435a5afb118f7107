"""All precisions of a model at once: error against bytes, methods by colour, the front over all of them by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from segquant_bench.eval.metrics.registry import known_metric
from segquant_bench.eval.report.drawing.bytes_plot import (
    CHARACTER,
    ERRORS,
    FRONT,
    LINE,
    LONGEST,
    PICTURES,
    Point,
    head,
    name_points,
    points,
)
from segquant_bench.eval.report.drawing.canvas import figure_text, new_figure, plain_log_ticks
from segquant_bench.eval.report.main_table.columns import Quantity, columns
from segquant_bench.eval.report.runs.known import is_ours
from segquant_bench.eval.report.runs.labels import labels
from segquant_bench.eval.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 7
"""Precisions of a model; fewer have room one below the other, in `bytes_plot`."""
THEIRS = ("#475569", "#0284c7", "#16a34a", "#a16207", "#7c3aed", "#db2777", "#0f766e", "#94a3b8")
OURS = ("#c2410c", "#f59e0b", "#dc2626")
MARKERS = "osD^vP*X<>ph"
PANEL, HEIGHT = 4.4, 4.4
"""Inches of a panel without its labels."""
Style = tuple[str, str]
"""A colour and a marker."""


def formats_plot(runs: Sequence[RunResult]) -> Figure | None:
    """A row per model with at least FEWEST precisions, a panel per error, psnr and FID; None without such a model."""
    quantized = [run for run in runs if not run.is_float]
    by_model: dict[str, list[RunResult]] = {}
    for run in quantized:
        by_model.setdefault(run.model, []).append(run)
    models = {name: own for name, own in by_model.items() if len({run.precision for run in own}) >= FEWEST}
    shown = [quantity for quantity in columns(quantized) if _is_shown(quantity)]
    if not models or not shown:
        return None
    methods = labels([run for own in models.values() for run in own])
    names = {id(run): f"{run.precision} {methods[id(run)]}" for own in models.values() for run in own}
    by_name = {names[id(run)]: methods[id(run)] for own in models.values() for run in own}
    styles = _styles([run for own in models.values() for run in own], methods)
    cells = {name: [points(quantity, own, names) for quantity in shown] for name, own in models.items()}
    every = [cell for row in cells.values() for cell in row]
    longest = max((len(point.label) for cell in every for point in cell if point.front), default=0)
    height = max(HEIGHT, LINE * max(sum(point.front for point in cell) for cell in every) + 0.3)
    width = PANEL + CHARACTER * min(longest, LONGEST)
    figure = new_figure(width * len(shown) + 0.6, (height + 0.5) * len(models) + 0.5, wspace=0.02)
    panels = figure.subplots(len(models), len(shown), squeeze=False)
    for row, (name, found) in zip(panels, cells.items(), strict=True):
        for panel, quantity, cell in zip(row, shown, found, strict=True):
            _draw(panel, cell, {label: styles[method] for label, method in by_name.items()})
            if quantity.key != PICTURES and cell and all(point.y > 0.0 for point in cell):
                panel.set_yscale("log")
                plain_log_ticks(panel)
            name_points(panel, [point for point in cell if point.front], LINE / height)
            panel.set_title(head(quantity), fontsize=10)
            panel.set_xlabel("weights, MB", fontsize=9)
        row[0].set_ylabel(figure_text(name), fontsize=10, fontweight="bold")
    _legend(figure, styles)
    return figure


def _is_shown(quantity: Quantity) -> bool:
    metric = known_metric(quantity.key)
    return quantity.key in (ERRORS[0], PICTURES) or (metric is not None and metric.headline)


def _styles(runs: Sequence[RunResult], methods: Mapping[int, str]) -> dict[str, Style]:
    """By method, in the order of the runs; ours in warm colours."""
    found: dict[str, Style] = {}
    counts = {True: 0, False: 0}
    for run in runs:
        if (method := methods[id(run)]) not in found:
            ours = is_ours(run.quantizer)
            colours = OURS if ours else THEIRS
            found[method] = (colours[counts[ours] % len(colours)], MARKERS[len(found) % len(MARKERS)])
            counts[ours] += 1
    return found


def _draw(panel: Axes, found: Sequence[Point], styles: Mapping[str, Style]) -> None:
    front = sorted((point.x, point.y) for point in found if point.front)
    if front:
        panel.plot(*zip(*front, strict=True), drawstyle="steps-post", color=FRONT, linewidth=1.4, zorder=1)
    for point in found:
        colour, marker = styles[point.label]
        panel.plot(
            point.x, point.y, marker, color=colour, markersize=5, zorder=3,
            markerfacecolor=colour if point.front else "white",
        )  # fmt: skip
    panel.margins(x=0.04, y=0.04)
    panel.tick_params(labelsize=8)
    panel.grid(color="#e2e8f0")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, styles: Mapping[str, Style]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, marker=marker, linestyle="none") for colour, marker in styles.values()]
    names = [figure_text(method) for method in styles]
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 8), fontsize=9, frameon=False)
