"""Runs that differ in the calibration's seed alone are one row.

Each has calibration prompts, latents and timesteps of its own; prompts and latents of the judged pictures are the same.
Their value is the mean over seeds. Its 95 % interval has two levels: pictures (the mean of the seeds' own intervals, no
narrower than that of their mean), and seeds (Student's interval of their mean). The half-widths add up in quadrature
(MOVER, Zou and Donner 2008), which keeps its 95 % also where three seeds differ much more than pictures do.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from segquant_bench.eval.report.runs.groups import ELSEWHERE, config_leaves, group_key
from segquant_bench.eval.report.runs.leaves import is_within
from segquant_bench.eval.report.runs.student import quantile
from segquant_bench.eval.results import EvalResult, Interval, RunResult

SEED = "calibration.seed"


@dataclass(frozen=True)
class OverSeeds:
    """A number over seeds: mean, standard deviation, interval, and degrees of freedom, for p-values."""

    mean: float
    sd: float | None
    interval: Interval | None
    df: float


def over_seeds(values: Sequence[float], intervals: Sequence[Interval | None], df: float = math.inf) -> OverSeeds:
    """Of at least two seeds; `df` are those of the seeds' own intervals.

    Infinite values have neither spread nor interval.
    """
    mean = statistics.fmean(values)
    if not all(map(math.isfinite, values)):
        return OverSeeds(mean, None, None, df)
    sd = statistics.stdev(values)
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(values):
        return OverSeeds(mean, sd, None, df)
    below = statistics.fmean(value - low for value, (low, _) in zip(values, known, strict=True))
    above = statistics.fmean(high - value for value, (_, high) in zip(values, known, strict=True))
    between = sd / math.sqrt(len(values))
    seeds = quantile(len(values) - 1.0) * between
    errors = (((below + above) / (2.0 * quantile(df)), df), (between, len(values) - 1.0))
    return OverSeeds(
        mean, sd, (mean - math.hypot(below, seeds), mean + math.hypot(above, seeds)), _satterthwaite(*errors)
    )


def _satterthwaite(*errors: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of independent variances (Welch), of (standard error, its degrees of freedom)."""
    below = sum(error**4 / df for error, df in errors)
    return sum(error**2 for error, _ in errors) ** 2 / below if below else math.inf


def merge_seeds(runs: Sequence[RunResult]) -> list[RunResult]:
    """One run for all that differ in the calibration's seed alone; its `seed_runs` are these, by seed.

    It has means of their numbers, and pictures, costs and records of the first. Runs of one seed that configurations do
    not tell apart stay as they are, with all that are like them.
    """
    families: dict[object, list[RunResult]] = {}
    for run in runs:
        families.setdefault(_key(run), []).append(run)
    found = []
    for members in families.values():
        seeds = {calibration_seed(run) for run in members}
        found += [_merged(members)] if 1 < len(members) == len(seeds) else members
    return found


def calibration_seed(run: RunResult) -> int | None:
    """None where the results do not say."""
    seed = (run.config.get("calibration") or {}).get("seed")
    return seed if isinstance(seed, int) else None


def _key(run: RunResult) -> object:
    if run.is_float or calibration_seed(run) is None:
        return run.path
    every: dict[str, Any] = {
        key: value for key, value in config_leaves(run).items() if key != SEED and not is_within(key, ELSEWHERE)
    }
    return (group_key(run), run.quantizer, json.dumps(every, sort_keys=True, default=str))


def _merged(members: Sequence[RunResult]) -> RunResult:
    runs = sorted(members, key=lambda run: calibration_seed(run) or 0)
    layers = [layer for layer in runs[0].layer_errors if all(layer in run.layer_errors for run in runs)]
    outputs = [run.output_error for run in runs if run.output_error is not None]
    sizes = [run.weight_bytes for run in runs if run.weight_bytes is not None]
    return replace(
        runs[0],
        metrics=tuple(_merged_metrics(runs)),
        layer_errors={layer: statistics.fmean(run.layer_errors[layer] for run in runs) for layer in layers},
        output_error=statistics.fmean(outputs) if len(outputs) == len(runs) else None,
        weight_bytes=round(statistics.fmean(sizes)) if len(sizes) == len(runs) else None,
        per_row_output_errors=(),  # of other inputs for each seed
        per_row_steps=(),
        per_row_prompts=(),
        per_row_energies=(),
        layer_steps=(),
        layer_step_errors={},
        seed_runs=tuple(runs),
    )


def _merged_metrics(runs: Sequence[RunResult]) -> list[EvalResult]:
    found = []
    for first in runs[0].metrics:
        results = [result for run in runs if (result := run.metric(first.name)) is not None]
        if len(results) == len(runs):
            value = over_seeds([result.value for result in results], [result.interval for result in results])
            deltas = [result.delta for result in results if result.delta is not None]
            known = len(deltas) == len(runs)
            delta = over_seeds(deltas, [result.delta_interval for result in results]) if known else None
            found.append(
                replace(
                    first, value=value.mean, interval=value.interval, delta=None if delta is None else delta.mean,
                    delta_interval=None if delta is None else delta.interval,
                )
            )  # fmt: skip
    return found
