"""What a results table shows: columns, and the numbers of each cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segquant_bench.eval.metrics.statistics import bootstrap_counts, mean_replicates, percentile_interval
from segquant_bench.eval.report.labels import DENOISER, group_key, quantized_parts
from segquant_bench.eval.results import Interval, RunResult

REPLICATES = 1000
BYTES_PER_MB = 1e6


@dataclass(frozen=True)
class Cell:
    """One number of the table with its 95 % interval."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Column:
    """A column: `key` for machines, `title` and `unit` for people; `judged` columns get a best value."""

    key: str
    title: str
    unit: str
    direction: str | None
    cell: Callable[[RunResult], Cell | None]
    judged: bool = True

    @property
    def arrow(self) -> str:
        """↑ or ↓, whichever is better; empty where neither is."""
        return {"higher": "↑", "lower": "↓", None: ""}[self.direction]


def columns(runs: Sequence[RunResult]) -> list[Column]:
    """Every metric found in the runs, in order of first appearance, then errors, size and cost."""
    found: list[Column] = []
    names = dict.fromkeys(metric.name for run in runs for metric in run.metrics)
    for name in names:
        example = next(m for run in runs for m in run.metrics if m.name == name)
        unit = "dB" if name == "psnr" else ""
        found.append(Column(name, _title(name), unit, example.direction, _metric_cell(name)))
    found += [
        Column("layer_error", "layer error", "relative", "lower", layer_error),
        Column("output_error", "output error", "relative", "lower", output_error),
        Column("weight_mb", "weights", "MB", "lower", _weight_mb, judged=False),
        Column("compression", "compression", "×", "higher", _compression, judged=False),
        Column("encoder_error", "other components' error", "relative", "lower", _encoder_error),
        Column("encoders_mb", "text encoders", "MB", "lower", _encoders_mb, judged=False),
        Column("pipeline_mb", "whole pipeline", "MB", "lower", _pipeline_mb, judged=False),
        Column("quantize_s", "quantize", "s", "lower", _quantize_seconds, judged=False),
        Column("peak_mb", "memory", "MiB", "lower", _quantize_peak, judged=False),
    ]
    return [column for column in found if any(column.cell(run) is not None for run in runs)]


def _title(name: str) -> str:
    """``fid_ref[effnet_lite0]`` → ``fid_ref [effnet_lite0]``, which may break at the space."""
    return name.replace("[", " [")


def _metric_cell(name: str) -> Callable[[RunResult], Cell | None]:
    def cell(run: RunResult) -> Cell | None:
        metric = run.metric(name)
        return None if metric is None else Cell(metric.value, metric.interval)

    return cell


def layer_error(run: RunResult) -> Cell | None:
    """Geometric mean over layers of the relative output error, with a bootstrap interval over layers.

    The layers of all components that were quantized; those without error (left unquantized) are not part of it.
    """
    return _geometric_mean([e for e in run.every_layer_error.values() if e > 0.0], run.seed)


def output_error(run: RunResult) -> Cell | None:
    """Relative error of the denoiser's output on held-out inputs; the interval is over denoiser calls."""
    if DENOISER not in quantized_parts(run) or run.output_error is None:
        return None
    rows = np.array(run.per_row_output_errors)
    if len(rows) < 2:
        return Cell(run.output_error)
    counts = bootstrap_counts(len(rows), REPLICATES, run.seed)
    drawn = mean_replicates(rows, counts)
    # The recorded value weighs calls by their energy, the rows do not: keep the rows' relative spread.
    low, high = percentile_interval(drawn / rows.mean())
    return Cell(run.output_error, (run.output_error * low, run.output_error * high))


def _geometric_mean(errors: Sequence[float], seed: int) -> Cell | None:
    if not errors:
        return None
    logs = np.log(errors)
    if len(logs) < 2:
        return Cell(float(errors[0]))
    drawn = mean_replicates(logs, bootstrap_counts(len(logs), REPLICATES, seed))
    low, high = percentile_interval(drawn)
    return Cell(math.exp(logs.mean()), (math.exp(low), math.exp(high)))


def _weight_mb(run: RunResult) -> Cell | None:
    size = _quantized_bytes(run, "weight_bytes")
    return None if size is None else Cell(size / BYTES_PER_MB)


def _quantized_bytes(run: RunResult, key: str) -> int | None:
    """Of the components that were quantized together; of the denoiser where none was."""
    parts = quantized_parts(run) or (DENOISER,)
    sizes = [getattr(run, key) if part == DENOISER else run.components.get(part, {}).get(key) for part in parts]
    return None if None in sizes else sum(sizes)


def _encoder_error(run: RunResult) -> Cell | None:
    """Largest relative error of the outputs of quantized components beside the denoiser."""
    errors = [part["output_error"] for part in run.components.values() if "output_error" in part]
    return Cell(max(errors)) if errors else None


def _encoders_mb(run: RunResult) -> Cell | None:
    """All text encoders of the pipeline, quantized or not."""
    sizes = [part["weight_bytes"] for name, part in run.components.items() if "text_encoder" in name]
    return Cell(sum(sizes) / BYTES_PER_MB) if sizes else None


def _pipeline_mb(run: RunResult) -> Cell | None:
    sizes = [part["weight_bytes"] for part in run.components.values()]
    return Cell(sum(sizes) / BYTES_PER_MB) if sizes else None


def _compression(run: RunResult) -> Cell | None:
    before, after = (_quantized_bytes(run, key) for key in ("weight_bytes_float", "weight_bytes"))
    return Cell(before / after) if before and after else None


def _quantize_seconds(run: RunResult) -> Cell | None:
    """Of all quantized components together."""
    found = _quantizing(run, "seconds")
    return Cell(sum(found)) if found else None


def _quantize_peak(run: RunResult) -> Cell | None:
    found = _quantizing(run, "peak_memory_mb")
    return Cell(max(found)) if found else None


def _quantizing(run: RunResult, key: str) -> list[float]:
    """Of the denoiser's stage and of that of the other components."""
    stages = [] if run.is_float else [run.stages[name] for name in ("quantize", "components") if name in run.stages]
    return [float(stage[key]) for stage in stages if stage.get(key) is not None]


def best_runs(column: Column, runs: Sequence[RunResult]) -> set[int]:
    """`id` of the runs with the best value of their group; only where quantized runs differ."""
    if column.direction is None or not column.judged:
        return set()
    groups: dict[object, list[tuple[float, int]]] = {}
    for run in runs:
        cell = column.cell(run)
        if cell is not None and not run.is_float:
            groups.setdefault(group_key(run), []).append((cell.value, id(run)))
    pick = min if column.direction == "lower" else max
    best: set[int] = set()
    for entries in groups.values():
        if len({value for value, _ in entries}) > 1:
            top = pick(value for value, _ in entries)
            best |= {run for value, run in entries if value == top}
    return best
