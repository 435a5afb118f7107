"""Errors over sampling steps (Figure 3 of arXiv 2507.14811) or calibration prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from segquant_bench.eval.report.drawing.canvas import (
    COMMON,
    figure_text,
    more_width,
    new_figure,
    plain_log_ticks,
)
from segquant_bench.eval.report.drawing.curve import Curve, Panels
from segquant_bench.eval.report.main_table.columns import bootstrap_interval, layer_error, output_error
from segquant_bench.eval.report.runs.groups import DENOISER, quantized_parts, sort_runs
from segquant_bench.eval.report.runs.known import is_ours
from segquant_bench.eval.report.runs.labels import labels, method_name, places, settings
from segquant_bench.eval.report.runs.rows import row_prompts
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.numbers import joined
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.table import Cell, Column, Table, heads, number

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROMPTS = "calibration.prompts"
LEAST_STEPS = 3
BASELINES = (
    "#475569", "#0369a1", "#0f766e", "#7c3aed", "#94a3b8", "#38bdf8", "#2dd4bf", "#c4b5fd", "#65a30d", "#1e3a8a",
)  # fmt: skip
OWN = ("#c2410c", "#f59e0b", "#e11d48", "#7f1d1d")
DASHES = ("-", "--", ":")
BANDS = 6
MARKERS = "osD^vP*X<>"


def step_curves(runs: Sequence[RunResult]) -> Panels:
    """Errors of the denoiser's output, for runs with at least three steps."""
    known = [run for run in _quantized(runs) if _count_steps(run) >= LEAST_STEPS]
    names, where = labels(known), places(known)
    panels: Panels = {}
    for run in known:
        members = run.seed_runs or (run,)  # inputs of all calibration seeds
        x = sorted({step for each in members for step in each.per_row_steps})
        by_step = [_by_prompt(each) for each in members]
        values = [np.concatenate([own.get(step, []) for own in by_step]) for step in x]
        curve = Curve(
            names[id(run)],
            is_ours(run.quantizer),
            tuple(step + 1.0 for step in x),
            tuple(float(value.mean()) for value in values),
            tuple(bootstrap_interval(value, run.seed) for value in values),
            run.path,
        )
        panels.setdefault(joined(run.precision, where[id(run)]), []).append(curve)
    return panels


def _count_steps(run: RunResult) -> int:
    return len({step for each in run.seed_runs or (run,) for step in each.per_row_steps})


def _by_prompt(run: RunResult) -> dict[int, list[float]]:
    """By step, the mean of each prompt's calls, which true guidance makes two."""
    prompts = row_prompts(run)
    calls: dict[int, dict[int, list[float]]] = {}
    for place, (step, error) in enumerate(zip(run.per_row_steps, run.per_row_output_errors, strict=False)):
        prompt = place if prompts is None else prompts[place]  # older results have one call of each
        calls.setdefault(step, {}).setdefault(prompt, []).append(error)
    return {step: [float(np.mean(own[prompt])) for prompt in sorted(own)] for step, own in calls.items()}


def _quantized(runs: Sequence[RunResult]) -> list[RunResult]:
    found: dict[object, RunResult] = {}
    for run in sorted(sort_runs(runs), key=lambda run: len(quantized_parts(run))):
        if DENOISER in quantized_parts(run):
            found.setdefault(run.stages.get("quantize", {}).get("key") or run.path, run)
    return sort_runs(list(found.values()))


def size_curves(runs: Sequence[RunResult]) -> Panels:
    """Errors over calibration prompts, for methods with at least two numbers of them."""
    known = [run for run in _quantized(runs) if settings(run).get(PROMPTS) is not None]
    names, where = labels(known, (PROMPTS,)), places(known)
    lines: dict[tuple[str, str], list[RunResult]] = {}
    for run in known:
        lines.setdefault((joined(run.precision, where[id(run)]), names[id(run)]), []).append(run)
    panels: Panels = {}
    for title, cell in (("output error", output_error), ("layer error", layer_error)):
        for (place, label), members in lines.items():
            if len({settings(run)[PROMPTS] for run in members}) > 1:
                ordered = sorted(members, key=lambda run: settings(run)[PROMPTS])
                cells = [(float(settings(run)[PROMPTS]), cell(run)) for run in ordered]
                points = [(x, c.value, c.interval) for x, c in cells if c is not None and c.value is not None]
                x, y, intervals = zip(*points, strict=True) if points else ((), (), ())
                curve = Curve(label, is_ours(method_name(members[0])), x, y, intervals)
                panels.setdefault(f"{title} at {place}", []).append(curve)
    return panels


def curves_csv(panels: Panels, axis: str) -> str:
    columns = (*heads(("panel", "method", axis), ()), Column("error", intervals=True))
    rows = [
        (Cell(title), Cell(curve.label), Cell(f"{x:g}"), number(y, interval))
        for title, curves in panels.items()
        for curve in curves
        for x, y, interval in zip(curve.x, curve.y, curve.intervals, strict=True)
    ]
    return to_csv(Table(columns, (tuple(rows),)))


def curves_plot(panels: Panels, axis: str, *, doubling: bool = False) -> Figure:
    """Panels side by side, errors on a logarithmic axis; x too if `doubling`."""
    styles = _styles([curve for curves in panels.values() for curve in curves])
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.9 * columns + 2.2 + more_width(styles), 3.3 * rows + 0.3)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    handles: dict[str, Artist] = {}
    for index, ((title, curves), panel) in enumerate(zip(panels.items(), axes, strict=False)):
        for curve in curves:
            line = _line(panel, curve, styles[curve.label], band=len(curves) <= BANDS)
            handles.setdefault(curve.label, line)
        panel.set_title(figure_text(title, 2 * COMMON), fontsize=10)
        panel.set_xlabel(axis, fontsize=9)
        panel.set_ylabel("" if index % columns else "relative error", fontsize=9)
        _scales(panel, curves, doubling)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    figure.legend(
        list(handles.values()), list(map(figure_text, handles)), loc="outside right upper", frameon=False, fontsize=9
    )
    return figure


def _styles(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """Warm colours for SegQuant and auto, cold for others."""
    found: dict[str, dict[str, Any]] = {}
    counts = {True: 0, False: 0}
    for curve in curves:
        if curve.label in found:
            continue
        number, colours = counts[curve.ours], OWN if curve.ours else BASELINES
        found[curve.label] = {
            "color": colours[number % len(colours)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": DASHES[number // len(colours) % len(DASHES)],
            "linewidth": 2.0 if curve.ours else 1.3,
            "zorder": 3 if curve.ours else 2,
        }
        counts[curve.ours] += 1
    return found


def _line(panel: Axes, curve: Curve, style: dict[str, Any], *, band: bool) -> Artist:
    if band:
        edges = [interval or (value, value) for value, interval in zip(curve.y, curve.intervals, strict=True)]
        low, high = zip(*edges, strict=True)
        panel.fill_between(curve.x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    (line,) = panel.plot(curve.x, curve.y, markersize=4, **style)
    return line


def _scales(panel: Axes, curves: Sequence[Curve], doubling: bool) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter

    panel.set_yscale("log")
    plain_log_ticks(panel)
    panel.tick_params(labelsize=8)
    panel.grid(color="#e2e8f0")
    panel.spines[["top", "right"]].set_visible(False)
    if doubling:
        ticks = sorted({x for curve in curves for x in curve.x})
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [f"{x:g}" for x in ticks])
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
