"""Data of the charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant_bench.eval.report.drawing.curve import Curve, Panels
from segquant_bench.eval.report.page.rows import PageTable
from segquant_bench.eval.results import RunResult


@dataclass(frozen=True)
class LineChart:
    """Errors over something: panels by title; `doubling`: its axis is logarithmic."""

    name: str
    title: str
    axis: str
    panels: Panels
    doubling: bool = False


def lines_data(charts: Sequence[LineChart], rows: Mapping[Path, int]) -> list[dict[str, Any]]:
    return [
        {
            "name": chart.name,
            "title": chart.title,
            "axis": chart.axis,
            "doubling": chart.doubling,
            "panels": [
                {"title": title, "lines": [_line(curve, rows) for curve in curves]}
                for title, curves in chart.panels.items()
            ],
        }
        for chart in charts
    ]


def _line(curve: Curve, rows: Mapping[Path, int]) -> dict[str, Any]:
    edges = [interval or (y, y) for y, interval in zip(curve.y, curve.intervals, strict=True)]
    return {
        "label": curve.label,
        "ours": curve.ours,
        "row": None if curve.path is None else rows.get(curve.path),
        "x": list(curve.x),
        "y": list(map(_four_digits, curve.y)),
        "low": [_four_digits(low) for low, _ in edges],
        "high": [_four_digits(high) for _, high in edges],
    }


def heat_data(table: PageTable) -> dict[str, Any]:
    """Layer errors by row, in the order of `layers`; None where a run has no such layer, or the row none at all."""
    every = [_errors(row.run) for row in table.rows]
    layers = list(dict.fromkeys(layer for errors in every for layer in errors))
    return {
        "layers": layers,
        "steps": [number for number, row in enumerate(table.rows) if row.run.layer_step_errors],
        "rows": [[_known(errors.get(layer)) for layer in layers] if errors else None for errors in every],
    }


def steps_data(run: RunResult, layers: Sequence[str]) -> dict[str, Any]:
    """One run's layer errors: a row per sampling step, in the order of `layers`."""
    none = [None] * len(run.layer_steps)
    by_layer = [run.layer_step_errors.get(layer, none) for layer in layers]
    rows = [[_known(values[place]) for values in by_layer] for place in range(len(run.layer_steps))]
    return {"steps": [step + 1 for step in run.layer_steps], "rows": rows}


def _errors(run: RunResult) -> dict[str, float]:
    return {} if run.is_float else run.every_layer_error


def _known(value: float | None) -> float | None:
    """As many digits as a colour can show: the page stays small."""
    return None if value is None else float(f"{value:.3g}")


def _four_digits(value: float) -> float:
    """As many as a line can show."""
    return float(f"{value:.4g}")
