from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segquant_bench.eval.metrics.metric import split_name
from segquant_bench.eval.metrics.registry import known_metric
from segquant_bench.eval.metrics.statistics import bootstrap_counts, clustered_spread, mean_interval
from segquant_bench.eval.report.runs.groups import DENOISER, quantized_parts
from segquant_bench.eval.report.runs.once import once_per_run
from segquant_bench.eval.report.runs.rows import row_prompts
from segquant_bench.eval.report.runs.seeds import over_seeds
from segquant_bench.eval.report.runs.sizes import quantized_bytes
from segquant_bench.eval.results import EvalResult, Interval, RunResult
from segquant_bench.eval.tables.table import Cell, Column, number

REPLICATES = 1000
BYTES_PER_MB = 1e6
QUANTIZING = ("quantize", "components", "encoders")
"""Stages of runs that do not name them; the last is the second's name in older runs."""


CellOf = Callable[[RunResult], Cell | None]


@dataclass(frozen=True)
class Quantity:
    """`key` for machines, `head` for people; `judged` ones get a best value."""

    key: str
    head: Column
    cell: CellOf
    judged: bool = True


def columns(runs: Sequence[RunResult]) -> list[Quantity]:
    found = [_metric(next(m for run in runs for m in run.metrics if m.name == name)) for name in metric_names(runs)]
    found += [
        _quantity("layer_error", "layer error", "relative", "lower", layer_error),
        _quantity("output_error", "output error", "relative", "lower", output_error),
        _quantity("weight_mb", "weights", "MB", "lower", weight_megabytes, judged=False),
        _quantity("compression", "compression", "×", "higher", _compression, judged=False),
        _quantity("encoder_error", "other components' error", "relative", "lower", _encoder_error),
        _quantity("encoders_mb", "text encoders", "MB", "lower", _encoders_mb, judged=False),
        _quantity("pipeline_mb", "whole pipeline", "MB", "lower", _pipeline_mb, judged=False),
        _quantity("quantize_s", "quantize", "s", "lower", _quantize_seconds, judged=False),
        _quantity("peak_mb", "memory", "MiB", "lower", _quantize_peak, judged=False),
        _quantity("step_s", "step", "s", "lower", step_seconds, judged=False),
        _quantity("speed", "speed", "× float32", "higher", lambda run: _measured(run, "speed"), judged=False),
        _quantity("forward_mb", "forward", "MiB", "lower", lambda run: _measured(run, "forward_mb"), judged=False),
        _quantity("held_mb", "held", "MiB", "lower", lambda run: _measured(run, "weights_mb"), judged=False),
        _quantity("file_mb", "file", "MB", "lower", file_megabytes, judged=False),
    ]
    return [quantity for quantity in found if any(quantity.cell(run) is not None for run in runs)]


def metric_names(runs: Sequence[RunResult]) -> list[str]:
    """In order of first appearance."""
    return list(dict.fromkeys(metric.name for run in runs for metric in run.metrics))


def metric_unit(result: EvalResult) -> str:
    """The registered metric's, else the result's."""
    metric = known_metric(result.name)
    return result.unit if metric is None else metric.unit


def _metric(example: EvalResult) -> Quantity:
    def cell(run: RunResult) -> Cell | None:
        found = run.metric(example.name)
        return None if found is None else number(found.value, found.interval)

    title, network = split_name(example.name)
    head = Column(title, "number", network, metric_unit(example), example.direction)
    return Quantity(example.name, head, mean_of_seeds(cell))


def _quantity(
    key: str,
    title: str,
    unit: str,
    direction: str,
    cell: CellOf,
    *,
    judged: bool = True,
) -> Quantity:
    return Quantity(key, Column(title, "number", "", unit, direction), mean_of_seeds(cell), judged)


def mean_of_seeds(cell: CellOf) -> CellOf:
    """The same of a run that stands for several seeds: mean, standard deviation and interval over them."""

    @functools.wraps(cell)
    def over(run: RunResult) -> Cell | None:
        if not run.seed_runs:
            return cell(run)
        cells = [found for each in run.seed_runs if (found := cell(each)) is not None and found.value is not None]
        if len(cells) < len(run.seed_runs):
            return None
        whole = over_seeds([float(each.value or 0.0) for each in cells], [each.interval for each in cells])
        return number(whole.mean, whole.interval, sd=whole.sd)

    return over


@once_per_run
@mean_of_seeds
def layer_error(run: RunResult) -> Cell | None:
    """Geometric mean over quantized layers of the relative output error."""
    return _geometric_mean([e for e in run.every_layer_error.values() if e > 0.0], run.seed)


@once_per_run
@mean_of_seeds
def output_error(run: RunResult) -> Cell | None:
    """Relative error of the denoiser's output on held-out inputs."""
    if DENOISER not in quantized_parts(run) or run.output_error is None:
        return None
    rows, prompts = np.array(run.per_row_output_errors), row_prompts(run)
    if prompts is None or not rows.size or not np.isfinite(rows).all():
        return number(run.output_error)
    energies = np.array(run.per_row_energies) if run.per_row_energies else np.ones(len(rows))  # older results: alike
    spread = clustered_spread(rows**2 * energies, energies, prompts, log=True)
    if spread is None:
        return number(run.output_error)
    factor = math.exp(min(spread.half / 2.0, 300.0))  # of the square root
    return number(run.output_error, (run.output_error / factor, run.output_error * factor))


def _geometric_mean(errors: Sequence[float], seed: int) -> Cell | None:
    if not errors:
        return None
    logs = np.log(errors)
    interval = bootstrap_interval(logs, seed)
    if interval is None:
        return number(errors[0])
    return number(math.exp(logs.mean()), (math.exp(interval[0]), math.exp(interval[1])))


def bootstrap_interval(values: np.ndarray, seed: int) -> Interval | None:
    """Of the mean of `values` [n]; None for fewer than two."""
    return mean_interval(values, _counts(len(values), seed)) if len(values) > 1 else None


@functools.lru_cache(maxsize=4)
def _counts(n: int, seed: int) -> np.ndarray:
    """The same for all runs of a report, which ask for them several times each."""
    found = bootstrap_counts(n, REPLICATES, seed)
    found.setflags(write=False)
    return found


@mean_of_seeds
def weight_megabytes(run: RunResult) -> Cell | None:
    """Of codes and scales."""
    size = quantized_bytes(run, "weight_bytes")
    return None if size is None else number(size / BYTES_PER_MB)


def _encoder_error(run: RunResult) -> Cell | None:
    """Largest of the components beside the denoiser."""
    found = [part.get("output_error") for part in run.components.values()]
    errors = [error for error in found if error is not None]
    return number(max(errors)) if errors else None


def _encoders_mb(run: RunResult) -> Cell | None:
    sizes = [part["weight_bytes"] for name, part in run.components.items() if "text_encoder" in name]
    return number(sum(sizes) / BYTES_PER_MB) if sizes else None


def _pipeline_mb(run: RunResult) -> Cell | None:
    sizes = [part["weight_bytes"] for part in run.components.values()]
    return number(sum(sizes) / BYTES_PER_MB) if sizes else None


def _compression(run: RunResult) -> Cell | None:
    before, after = (quantized_bytes(run, key) for key in ("weight_bytes_float", "weight_bytes"))
    return number(before / after) if before and after else None


@mean_of_seeds
def step_seconds(run: RunResult) -> Cell | None:
    """Median seconds of a sampling step's denoiser calls by the run's engine."""
    return _measured(run, "seconds_per_step")


def _measured(run: RunResult, key: str) -> Cell | None:
    found = (run.speed.get("measured") or {}).get("run", {}).get(key)
    return None if found is None else number(float(found))


@mean_of_seeds
def file_megabytes(run: RunResult) -> Cell | None:
    """Of the file that the engine's model is loaded from."""
    size = run.speed.get("file_bytes")
    return None if size is None else number(size / BYTES_PER_MB)


def _quantize_seconds(run: RunResult) -> Cell | None:
    found = _quantizing(run, "seconds")
    return number(sum(found)) if found else None


def _quantize_peak(run: RunResult) -> Cell | None:
    found = _quantizing(run, "peak_memory_mb")
    return number(max(found)) if found else None


def _quantizing(run: RunResult, key: str) -> list[float]:
    stages = [] if run.is_float else [run.stages[name] for name in run.quantizing or QUANTIZING if name in run.stages]
    return [float(stage[key]) for stage in stages if stage.get(key) is not None]
