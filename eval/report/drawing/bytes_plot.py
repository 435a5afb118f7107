"""Error against bytes: a row per precision; on a line, filled and bold, the runs that no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segquant_bench.eval.metrics.registry import known_metric, place
from segquant_bench.eval.report.drawing.canvas import figure_text, is_too_tall, new_figure, plain_log_ticks
from segquant_bench.eval.report.drawing.metric_plot import COLOURS, group_titles
from segquant_bench.eval.report.main_table.columns import BYTES_PER_MB, Quantity, columns
from segquant_bench.eval.report.runs.groups import group_key
from segquant_bench.eval.report.runs.labels import is_subject, labels
from segquant_bench.eval.report.runs.sizes import quantized_bytes
from segquant_bench.eval.results import Interval, RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERRORS = ("output_error", "layer_error")
PICTURES = "psnr"
LINE = 0.155
"""Inches from label to label."""
CHARACTER = 0.068
"""Inches, at the size of labels."""
LONGEST = 60
PANEL = 3.6
"""Inches of a panel's width without its labels."""
FRONT = "#94a3b8"
NAMES = 1.04
"""Where names begin, in widths of the panel."""


@dataclass(frozen=True)
class Point:
    """One run: megabytes, value and interval; on the front if no other has fewer bytes and a better value."""

    label: str
    ours: bool
    x: float
    y: float
    interval: Interval | None
    front: bool


def bytes_plot(runs: Sequence[RunResult]) -> Figure | None:
    """Every group with at least two runs of known bytes; None without one, or if it is too tall."""
    quantized = [run for run in runs if not run.is_float]
    shown, names = _shown(columns(quantized)), labels(quantized)
    groups: dict[object, list[RunResult]] = {}
    for run in quantized:
        groups.setdefault(group_key(run), []).append(run)
    titles = group_titles([members[0] for members in groups.values()], quantized)
    rows = [
        (title, [points(quantity, members, names) for quantity in shown])
        for title, members in zip(titles, groups.values(), strict=True)
    ]
    rows = [(title, cells) for title, cells in rows if any(len(cell) > 1 for cell in cells)]
    if not rows:
        return None
    heights = [max(2.4, LINE * max(map(len, cells)) + 0.3) for _, cells in rows]
    every = [point.label for _, cells in rows for cell in cells for point in cell]
    width = PANEL + CHARACTER * min(max(map(len, every)), LONGEST)
    whole = sum(heights) + 0.5 * len(rows) + 0.4
    if is_too_tall("bytes.png", whole):
        return None
    figure = new_figure(width * len(shown) + 0.8, whole, wspace=0.02)
    panels = figure.subplots(len(rows), len(shown), squeeze=False, height_ratios=heights)
    for number, ((title, cells), panel_row, height) in enumerate(zip(rows, panels, heights, strict=True)):
        for quantity, panel, cell in zip(shown, panel_row, cells, strict=True):
            _draw(panel, cell, height, is_log=quantity.key in ERRORS)
            panel.set_title(head(quantity) if not number else "", fontsize=10)
        panel_row[0].set_ylabel(title, fontsize=10, fontweight="bold")
        for panel in panel_row:
            panel.set_xlabel("weights, MB" if number == len(rows) - 1 else "", fontsize=9)
    return figure


def _shown(quantities: Sequence[Quantity]) -> list[Quantity]:
    """An error, and psnr; without psnr the first main metric."""
    errors = [each for key in ERRORS for each in quantities if each.key == key][:1]
    main = [each for each in quantities if (metric := known_metric(each.key)) is not None and metric.headline]
    pictures = [each for each in quantities if each.key == PICTURES] or sorted(main, key=lambda each: place(each.key))
    return [*errors, *pictures[:1]]


def points(quantity: Quantity, runs: Sequence[RunResult], names: dict[int, str]) -> list[Point]:
    """Of runs with known bytes and a finite value."""
    known = []
    for run in runs:
        size, cell = quantized_bytes(run), quantity.cell(run)
        if size and cell is not None and cell.value is not None and math.isfinite(cell.value):
            known.append((run, size / BYTES_PER_MB, cell.value, cell.interval))
    sign = 1.0 if quantity.head.direction == "lower" else -1.0
    at = [(x, sign * y) for _, x, y, _ in known]
    return [
        Point(names[id(run)], is_subject(run), x, y, interval, not any(beats(other, own) for other in at))
        for (run, x, y, interval), own in zip(known, at, strict=True)
    ]


def beats(other: tuple[float, float], own: tuple[float, float]) -> bool:
    """Whether the other (cost, error) is nowhere higher, and lower in one of the two."""
    return other != own and other[0] <= own[0] and other[1] <= own[1]


def head(quantity: Quantity) -> str:
    """A panel's title."""
    unit = f", {quantity.head.unit}" if quantity.head.unit else ""
    better = "lower" if quantity.head.direction == "lower" else "higher"
    return f"{figure_text(quantity.head.name + unit, LONGEST)} ({better} is better)"


def _draw(panel: Axes, found: Sequence[Point], height: float, *, is_log: bool) -> None:
    if not found:
        panel.set_visible(False)
        return
    panel.set_yscale("log" if is_log and all(point.y > 0.0 for point in found) else "linear")
    front = sorted((point.x, point.y) for point in found if point.front)
    panel.plot(*zip(*front, strict=True), drawstyle="steps-post", color=FRONT, linewidth=1.4, zorder=1)
    for point in found:
        colour = COLOURS[point.ours]
        if point.interval is not None:
            panel.vlines(point.x, *point.interval, color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        panel.plot(
            point.x, point.y, "o", color=colour, markersize=5, zorder=3,
            markerfacecolor=colour if point.front else "white",
        )  # fmt: skip
    panel.margins(x=0.06, y=0.06)
    panel.locator_params(axis="x", nbins=5)
    if panel.get_yscale() == "log":
        plain_log_ticks(panel)
    panel.tick_params(labelsize=8)
    panel.grid(color="#e2e8f0")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    name_points(panel, found, LINE / height)


def name_points(panel: Axes, found: Sequence[Point], gap: float) -> None:
    """Names in a column on the right, in the order of their points, each with a line to its point."""
    if not found:
        return
    from matplotlib.collections import LineCollection

    panel.autoscale_view()
    to_share = panel.transData + panel.transAxes.inverted()
    ordered = sorted(found, key=lambda point: (to_share.transform((point.x, point.y))[1], point.x))
    at = to_share.transform([(point.x, point.y) for point in ordered])
    heights = spread([float(y) for _, y in at], gap)
    for point, height in zip(ordered, heights, strict=True):
        panel.text(
            NAMES, height, figure_text(point.label, LONGEST), transform=panel.transAxes, va="center", fontsize=7.5,
            color=COLOURS[point.ours], fontweight="bold" if point.front else "normal",
        )  # fmt: skip
    # all lines in one: hundreds of arrows take seconds
    ends = [[(NAMES - 0.012, height), (x, y)] for height, (x, y) in zip(heights, at, strict=True)]
    lines = LineCollection(ends, colors=[COLOURS[point.ours] for point in ordered], linewidths=0.4, clip_on=False)
    lines.set(transform=panel.transAxes, zorder=1.5, in_layout=False)
    panel.add_collection(lines, autolim=False)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights from 0 to 1, at least `gap` apart where there is room for that, with the least squares to the `wanted`.

    Those rise; without the gaps between them the heights must only not fall, which is an isotonic regression.
    """
    gap = min(gap, 1.0 / max(len(wanted) - 1, 1))
    blocks: list[list[float]] = []  # of heights that are pushed together, as (sum, count)
    for index, height in enumerate(wanted):
        blocks.append([height - index * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    most = 1.0 - gap * (len(wanted) - 1)
    level = [min(max(total / count, 0.0), most) for total, count in blocks for _ in range(int(count))]
    return [height + index * gap for index, height in enumerate(level)]
