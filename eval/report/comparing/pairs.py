"""Two runs compared by picture, layer and prompt."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.registry import known_metric, place
from segquant_bench.eval.metrics.statistics import (
    Difference,
    clustered_mean_difference,
    paired_left_out_difference,
    paired_mean_difference,
    paired_replicate_difference,
)
from segquant_bench.eval.report.comparing.comparison import LAYERS, PICTURES, PROMPTS, Comparison, Names, log, logs
from segquant_bench.eval.report.comparing.evaluations import (
    LEFT_OUT,
    has_per_image,
    has_replicates,
    read_per_image,
    read_replicates,
)
from segquant_bench.eval.report.main_table.columns import REPLICATES, metric_unit
from segquant_bench.eval.report.runs.rows import row_prompts
from segquant_bench.eval.report.runs.seeds import calibration_seed, over_seeds
from segquant_bench.eval.report.runs.sizes import bytes_ratio
from segquant_bench.eval.results import EvalResult, Interval, RunResult


def difference(names: Names, result: EvalResult, gap: Difference) -> Comparison:
    return Comparison(
        *_fields(names), result.name, "difference", gap.value, gap.interval, gap.n, PICTURES,
        gap.verdict(result.direction), metric_unit(result), df=gap.n - 1.0, direction=result.direction,
    )  # fmt: skip


def _fields(names: Names) -> tuple[str, str, str, str, bool]:
    return (names.ours, names.theirs, names.precision, names.where, names.headline)


def log_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int) -> Difference | None:
    """Mean over pairs without zeros; None for fewer than two."""
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a > 0.0 and b > 0.0]
    if len(both) < 2:
        return None
    found = np.log(np.array(both))
    return paired_mean_difference(found[:, 0], found[:, 1], replicates=REPLICATES, seed=seed)


def log_ratio_by_prompt(ours: Sequence[float], theirs: Sequence[float], prompts: Sequence[int]) -> Difference | None:
    """As `log_ratio`, with an interval over prompts, whose calls are alike."""
    rows = zip(ours, theirs, prompts, strict=True)
    both = [(math.log(a) - math.log(b), prompt) for a, b, prompt in rows if a > 0.0 and b > 0.0]
    return clustered_mean_difference(np.array([gap for gap, _ in both]), [prompt for _, prompt in both])


def _require_finite(name: str, *values: float) -> None:
    if not np.isfinite(values).all():
        raise EvalError(f"{name} is infinite, and a difference of infinities says nothing")


def as_ratio(gap: Difference) -> tuple[float, Interval]:
    low, high = gap.interval
    return _exp(gap.value), (_exp(low), _exp(high))


def _exp(value: float) -> float:
    return math.exp(value) if value < math.log(sys.float_info.max) else math.inf


@dataclass(frozen=True)
class Pair:
    """Two runs of one group."""

    ours: RunResult
    theirs: RunResult
    names: Names

    def compare(self) -> tuple[list[Comparison], list[str]]:
        """By every metric, layer and denoiser output that both have; runs of several seeds by those seeds that do."""
        if self.ours.seed_runs or self.theirs.seed_runs:
            found, refused = self._over_seeds()
        else:
            found, refused = self._alone()
        ratio = bytes_ratio(self.ours, self.theirs)
        path, other = self.ours.path, self.theirs.path
        return [replace(each, size_ratio=ratio, path=path, other=other) for each in found], refused

    def _over_seeds(self) -> tuple[list[Comparison], list[str]]:
        ours, theirs = (
            {calibration_seed(each): each for each in run.seed_runs or (run,)} for run in (self.ours, self.theirs)
        )
        common = [seed for seed in ours if seed in theirs]
        if not common:
            return [], [f"{self._told()}: they share no calibration seed"]
        made = [Pair(ours[seed], theirs[seed], self.names)._alone() for seed in common]
        refused = list(dict.fromkeys(sentence for _, sentences in made for sentence in sentences))
        if len(common) == 1:
            return made[0][0], refused
        by_metric = [{each.metric: each for each in found} for found, _ in made]
        names = max(by_metric, key=len)  # pictures' scores of a seed may be gone, its errors are in its results
        every = [[found[name] for found in by_metric if name in found] for name in names]
        return [_mean_of_seeds(each) for each in every], refused

    def _told(self) -> str:
        return f"{self.names.ours} vs {self.names.theirs} at {self.names.setting}"

    def _alone(self) -> tuple[list[Comparison], list[str]]:
        found: list[Comparison] = []
        refused: list[str] = []
        for result, compare in self._picture_metrics():
            try:
                found.append(difference(self.names, result, compare(result)))
            except EvalError as error:
                refused.append(f"{self._told()}: {error}")
        return found + self._errors(), list(dict.fromkeys(refused))

    def _picture_metrics(self) -> list[tuple[EvalResult, Callable[[EvalResult], Difference]]]:
        ways = {"pictures": self._by_picture, "resamples": self._by_resample}
        mutual = [m for m in self.ours.metrics if self.theirs.metric(m.name) is not None]
        asked = [(m, self._paired(m)) for m in sorted(mutual, key=lambda m: place(m.name))]
        return [(m, ways[paired]) for m, paired in asked if paired is not None]

    def _paired(self, result: EvalResult) -> str | None:
        metric = known_metric(result.name)
        if metric is not None:
            return metric.paired
        runs = (self.ours, self.theirs)
        if all(has_per_image(run, result.name) for run in runs):
            return "pictures"
        return "resamples" if all(has_replicates(run, result.name) for run in runs) else None

    def _by_resample(self, mine: EvalResult) -> Difference:
        ours, theirs = read_replicates(self.ours, mine.name), read_replicates(self.theirs, mine.name)
        if ours[1] != theirs[1] or ours[0].shape != theirs[0].shape:
            raise EvalError(f"the resamples of {mine.name} differ in seed, n or replicates; evaluate both alike")
        other = next(m for m in self.theirs.metrics if m.name == mine.name)
        _require_finite(mine.name, mine.value, other.value)
        by_kind = paired_left_out_difference if ours[1]["kind"] == LEFT_OUT else paired_replicate_difference
        return by_kind((mine.value, ours[0]), (other.value, theirs[0]), mine.n)

    def _by_picture(self, mine: EvalResult) -> Difference:
        ours, theirs = read_per_image(self.ours, mine.name), read_per_image(self.theirs, mine.name)
        _require_finite(mine.name, *ours, *theirs)
        return paired_mean_difference(ours, theirs, replicates=REPLICATES, seed=self.ours.seed)

    def _errors(self) -> list[Comparison]:
        ours, theirs = self.ours.every_layer_error, self.theirs.every_layer_error
        layers = [layer for layer in ours if layer in theirs]
        found = self._ratio("layer error", [ours[k] for k in layers], [theirs[k] for k in layers], LAYERS)
        return found + self._output_error()

    def _output_error(self) -> list[Comparison]:
        prompts = row_prompts(self.ours)
        if prompts is None or prompts != row_prompts(self.theirs):
            return []
        rows = (self.ours.per_row_output_errors, self.theirs.per_row_output_errors)
        return self._as_ratio("output error", log_ratio_by_prompt(*rows, prompts), PROMPTS)

    def _ratio(self, name: str, ours: Sequence[float], theirs: Sequence[float], pairs: str) -> list[Comparison]:
        return self._as_ratio(name, log_ratio(ours, theirs, self.ours.seed), pairs)

    def _as_ratio(self, name: str, gap: Difference | None, pairs: str) -> list[Comparison]:
        if gap is None:
            return []
        value, interval = as_ratio(gap)
        fields = _fields(self.names)
        verdict = gap.verdict("lower")
        return [Comparison(*fields, name, "ratio", value, interval, gap.n, pairs, verdict, df=gap.n - 1.0)]


def _mean_of_seeds(found: Sequence[Comparison]) -> Comparison:
    """One comparison made of one per seed; ratios by their logarithms. See `runs.seeds` for the interval."""
    first = found[0]
    if len(found) == 1:
        return first
    is_ratio = first.kind == "ratio"
    values = [log(each.value) if is_ratio else each.value for each in found]
    whole = over_seeds(values, [logs(each.interval) if is_ratio else each.interval for each in found], first.df)
    assert whole.interval is not None  # of finite values, which all have intervals
    gap = Difference(whole.mean, whole.interval, first.n)
    value, interval = as_ratio(gap) if is_ratio else (gap.value, gap.interval)
    return replace(
        first, value=value, interval=interval, verdict=gap.verdict(first.direction), seeds=len(found), sd=whole.sd,
        df=whole.df,
    )  # fmt: skip
