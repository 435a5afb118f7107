"""Error against seconds and bytes: which runs no other one beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segquant_bench.eval.metrics.registry import known_metric, place
from segquant_bench.eval.report.canvas import COMMON, figure_text, more_width, new_figure, to_png
from segquant_bench.eval.report.columns import Quantity, columns, file_megabytes, step_seconds
from segquant_bench.eval.report.known import is_ours
from segquant_bench.eval.report.labels import labels, places, sort_runs
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.numbers import joined
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.table import Cell, Column, Table, heads, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS: tuple[tuple[str, Callable[[RunResult], Cell | None]], ...] = (
    ("seconds per step", step_seconds),
    ("file, MB", file_megabytes),
)
COLOURS = {True: "#c2410c", False: "#475569"}
MARKERS = "osD^vP*X<>"


@dataclass(frozen=True)
class Point:
    """One run in one panel; `best`: no other run of the panel costs less and errs less."""

    panel: str
    cost: str
    label: str
    engine: str
    ours: bool
    x: float
    y: float
    best: bool
    judge: str


def pareto_points(runs: Sequence[RunResult]) -> list[Point]:
    """Of runs whose speed was measured, by model and data set; empty for fewer than two."""
    known = [run for run in sort_runs(runs) if run.speed]
    error = _error(known)
    if error is None:
        return []
    names, where = labels(known), places(known)
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
                        panel, cost, joined(names[id(run)], run.precision), run.engine, is_ours(run.quantizer), x, y,
                        not any(_beats(other, own) for other in at), error.head.name,
                    )
                    for (run, x, y), own in zip(members, at, strict=True)
                ]  # fmt: skip
    return found


def _beats(other: tuple[float, float], own: tuple[float, float]) -> bool:
    return other != own and other[0] <= own[0] and other[1] <= own[1]


def _error(runs: Sequence[RunResult]) -> Quantity | None:
    """The first headline metric against the unquantized model's pictures, which the engine made; else psnr."""
    found = [each for each in columns(runs) if each.judged and _compares(each.key, runs)]
    return min(found, key=lambda each: (not _is_headline(each.key), place(each.key)), default=None)


def _compares(key: str, runs: Sequence[RunResult]) -> bool:
    return any((metric := run.metric(key)) is not None and metric.against == "reference" for run in runs)


def _is_headline(key: str) -> bool:
    metric = known_metric(key)
    return metric is not None and metric.headline


def pareto_csv(points: Sequence[Point]) -> str:
    columns = (*heads(("panel", "run", "cost"), ()), Column("value"), Column("judge", "key"), Column("error"),
               Column("best", "key"))  # fmt: skip
    rows = [
        (Cell(p.panel), Cell(p.label), Cell(p.cost), number(p.x), Cell(p.judge), number(p.y), Cell(str(p.best).lower()))
        for p in points
    ]
    return to_csv(Table(columns, (tuple(rows),)))


def pareto_plot(points: Sequence[Point]) -> bytes:
    """A panel per cost and place, a marker per engine, a line through the best."""
    panels: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        panels.setdefault((point.panel, point.cost), []).append(point)
    engines = list(dict.fromkeys(point.engine for point in points))
    figure = new_figure(5.2 * len(panels) + more_width(point.label for point in points), 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, ((place_name, cost), members) in zip(axes, panels.items(), strict=True):
        _draw(axis, members, engines)
        axis.set_title(figure_text(place_name, COMMON), fontsize=10)
        axis.set_xlabel(cost, fontsize=9)
        axis.set_ylabel(figure_text(members[0].judge, COMMON), fontsize=9)
    return to_png(figure)


def _draw(axis: Axes, points: Sequence[Point], engines: Sequence[str]) -> None:
    for point in points:
        axis.plot(
            point.x, point.y, MARKERS[engines.index(point.engine) % len(MARKERS)], color=COLOURS[point.ours],
            markersize=7 if point.best else 5, alpha=1.0 if point.best else 0.55,
        )  # fmt: skip
        axis.annotate(
            figure_text(point.label), (point.x, point.y), textcoords="offset points", xytext=(6, 3), fontsize=7
        )
    front = sorted((point.x, point.y) for point in points if point.best)
    axis.plot([x for x, _ in front], [y for _, y in front], color="#94a3b8", linewidth=1, zorder=1)
    axis.margins(x=0.35, y=0.12)
    axis.tick_params(labelsize=8)
    axis.grid(color="#e2e8f0")
    axis.spines[["top", "right"]].set_visible(False)
