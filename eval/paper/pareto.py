"""Error against seconds and bytes: which runs no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segquant_bench.eval.metrics.registry import known_metric, place
from segquant_bench.eval.paper.curves import BASELINES, MARKERS, OWN
from segquant_bench.eval.report.drawing.bytes_plot import beats
from segquant_bench.eval.report.drawing.canvas import COMMON, figure_text, more_width, new_figure
from segquant_bench.eval.report.main_table.columns import (
    Quantity,
    columns,
    file_megabytes,
    step_seconds,
    weight_megabytes,
)
from segquant_bench.eval.report.runs.groups import sort_runs
from segquant_bench.eval.report.runs.labels import is_subject, labels, places, settings
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.numbers import joined
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.table import Cell, Column, Table, heads, number

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENGINE = "run"
FLOAT = "#94a3b8"
DASHES = ((0, (5, 2)), (0, (1, 2)), (0, (5, 2, 1, 2)), (0, (9, 2)), (0, (1, 1)))


def _stored(run: RunResult) -> Cell | None:
    """The file's size; of runs that write none, codes and scales."""
    return file_megabytes(run) or weight_megabytes(run)


COSTS: tuple[tuple[str, Callable[[RunResult], Cell | None]], ...] = (
    ("seconds per step", step_seconds),
    ("file, MB", _stored),
)


@dataclass(frozen=True)
class Point:
    """One run in one panel.

    Attributes:
        label: with the engine; `series`: method and precision alone, "" of an unquantized model.
        run: the engine with its settings.
        front: no other run of the panel costs less and errs less.
        judge: what the error is; `axis`: the same with its unit and direction.
    """

    panel: str
    cost: str
    label: str
    series: str
    engine: str
    run: str
    ours: bool
    x: float
    y: float
    front: bool
    judge: str
    axis: str


def pareto_points(runs: Sequence[RunResult]) -> list[Point]:
    """Of runs whose speed was measured, by model and data set; empty for fewer than two."""
    known = [run for run in sort_runs(runs) if run.speed]
    error = _error(known)
    if error is None:
        return []
    names, series, where = labels(known), labels(known, (ENGINE,)), places(known)
    found = []
    for cost, cell in COSTS:
        panels: dict[str, list[tuple[RunResult, float, float]]] = {}
        for run in known:
            x, y = cell(run), error.cell(run)
            if x is not None and x.value and y is not None and y.value is not None:
                panels.setdefault(where[id(run)], []).append((run, x.value, y.value))
        for panel, members in panels.items():
            if len(members) > 1:
                at = [(x, y if error.head.direction == "lower" else -y) for _, x, y in members]
                found += [
                    Point(
                        panel, cost, joined(names[id(run)], run.precision),
                        "" if run.is_float else joined(series[id(run)], run.precision), run.engine,
                        settings(run)[ENGINE], is_subject(run), x, y,
                        not any(beats(other, own) for other in at), error.head.name, _axis(error),
                    )
                    for (run, x, y), own in zip(members, at, strict=True)
                ]  # fmt: skip
    return found


def _error(runs: Sequence[RunResult]) -> Quantity | None:
    """The first headline metric against the unquantized model's pictures, which the engine made; else psnr."""
    found = [each for each in columns(runs) if each.judged and _compares(each.key, runs)]
    return min(found, key=lambda each: (not _is_headline(each.key), place(each.key)), default=None)


def _axis(error: Quantity) -> str:
    told = figure_text(error.head.name + (f", {error.head.unit}" if error.head.unit else ""), COMMON)
    return f"{told} ({'lower' if error.head.direction == 'lower' else 'higher'} is better)"


def _compares(key: str, runs: Sequence[RunResult]) -> bool:
    return any((metric := run.metric(key)) is not None and metric.against == "reference" for run in runs)


def _is_headline(key: str) -> bool:
    metric = known_metric(key)
    return metric is not None and metric.headline


def pareto_csv(points: Sequence[Point]) -> str:
    columns = (*heads(("panel", "run", "cost"), ()), Column("value"), Column("judge", "key"), Column("error"),
               Column("front", "key"))  # fmt: skip
    rows = [
        (
            Cell(p.panel),
            Cell(p.label),
            Cell(p.cost),
            number(p.x),
            Cell(p.judge),
            number(p.y),
            Cell(str(p.front).lower()),
        )
        for p in points
    ]
    return to_csv(Table(columns, (tuple(rows),)))


def pareto_plot(points: Sequence[Point]) -> Figure:
    """A row per place, a panel per cost: a colour per method, a marker per engine, a line through the front.

    Unquantized models are lines: what they cost.
    """
    rows = {name: index for index, name in enumerate(dict.fromkeys(point.panel for point in points))}
    costs = {name: index for index, name in enumerate(dict.fromkeys(point.cost for point in points))}
    colours, looks = _colours(points), _looks(points)
    legend = _legend(colours, looks, points)
    height = max(3.6 * len(rows), 0.22 * len(legend) + 0.4)
    texts = [str(each.get_label()) for each in legend]
    figure = new_figure(4.2 * len(costs) + 2.6 + more_width(texts), height)
    axes = figure.subplots(len(rows), len(costs), squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for (place_name, row), (cost, column) in ((r, c) for r in rows.items() for c in costs.items()):
        members = [point for point in points if (point.panel, point.cost) == (place_name, cost)]
        if members:
            axes[row][column].set_visible(True)
            _draw(axes[row][column], members, colours, looks)
            axes[row][column].set_title(figure_text(place_name, COMMON), fontsize=10)
            axes[row][column].set_xlabel(cost, fontsize=9)
            axes[row][column].set_ylabel("" if column else members[0].axis, fontsize=9)
    figure.legend(handles=legend, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _colours(points: Sequence[Point]) -> dict[str, str]:
    """By series; warm for methods of ours, cold for others."""
    found: dict[str, str] = {}
    counts = {True: 0, False: 0}
    for point in points:
        if point.series and point.series not in found:
            palette = OWN if point.ours else BASELINES
            found[point.series] = palette[counts[point.ours] % len(palette)]
            counts[point.ours] += 1
    return found


def _looks(points: Sequence[Point]) -> dict[str, tuple[str, Any]]:
    """Marker and dashes by engine."""
    engines = dict.fromkeys(point.run for point in points)
    return {name: (MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)]) for i, name in enumerate(engines)}


def _legend(colours: dict[str, str], looks: dict[str, tuple[str, Any]], points: Sequence[Point]) -> list[Artist]:
    # matplotlib takes a second to import, which reports without figures do not need to wait for
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found: list[Artist] = [Patch(color=colour, label=figure_text(name)) for name, colour in colours.items()]
    drawn = dict.fromkeys(point.run for point in points if point.series)
    found += [
        Line2D([], [], color="#0f172a", marker=looks[name][0], linestyle="", markersize=5, label=figure_text(name))
        for name in drawn
    ]
    found.append(Line2D([], [], color="none", label="filled: no other costs less\nand errs less"))
    plain = dict.fromkeys(point.run for point in points if not point.series)
    return found + [
        Line2D([], [], color=FLOAT, linestyle=looks[name][1], label=figure_text(f"unquantized, {name}"))
        for name in plain
    ]


def _draw(axis: Axes, points: Sequence[Point], colours: dict[str, str], looks: dict[str, tuple[str, Any]]) -> None:
    shown = [point for point in points if point.series and math.isfinite(point.y)]
    for point in points:
        if not point.series:
            axis.axvline(point.x, color=FLOAT, linestyle=looks[point.run][1], linewidth=1.2, zorder=1)
    front = sorted((point.x, point.y) for point in shown if point.front)
    axis.plot([x for x, _ in front], [y for _, y in front], color="#cbd5e1", linewidth=1.5, zorder=1)
    for point in shown:
        axis.plot(
            point.x, point.y, looks[point.run][0], color=colours[point.series], markersize=7,
            markerfacecolor=colours[point.series] if point.front else "none", markeredgewidth=1.3,
        )  # fmt: skip
    axis.margins(x=0.1, y=0.12)
    axis.tick_params(labelsize=8)
    axis.grid(color="#e2e8f0")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
