"""Two runs compared by picture, layer and denoiser call."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.registry import known_metric, place
from segquant_bench.eval.metrics.statistics import Difference, paired_mean_difference, paired_replicate_difference
from segquant_bench.eval.report.comparing.evaluations import (
    has_per_image,
    has_replicates,
    read_per_image,
    read_replicates,
)
from segquant_bench.eval.report.main_table.columns import REPLICATES, metric_unit
from segquant_bench.eval.results import EvalResult, Interval, RunResult
from segquant_bench.eval.tables.numbers import format_difference, format_ratio, joined

PICTURES, LAYERS, CALLS = "pictures", "layers", "denoiser calls"


@dataclass(frozen=True)
class Names:
    """What two compared runs are called."""

    ours: str
    theirs: str
    precision: str
    where: str
    headline: bool

    @property
    def pair(self) -> tuple[str, str, str, str]:
        return (self.where, self.precision, self.ours, self.theirs)

    @property
    def setting(self) -> str:
        return joined(self.precision, self.where)


@dataclass(frozen=True)
class Comparison(Names):
    """One paired comparison: the first run minus the second, for errors first over second.

    Attributes:
        kind: ``"difference"``, or ``"ratio"`` (a geometric mean over pairs).
        interval: 95 % paired bootstrap interval.
        pairs: what they are pairs of, ``"pictures"``.
        verdict: ``"better"``, ``"worse"`` or ``"not distinguishable"``.
    """

    metric: str
    kind: str
    value: float
    interval: Interval
    n: int
    pairs: str
    verdict: str
    unit: str = ""

    @property
    def amount(self) -> str:
        """``+1.23 dB [+0.90, +1.50]`` or ``×0.720 [0.680, 0.770]``."""
        if self.kind == "ratio":
            return format_ratio(self.value, self.interval)
        return format_difference(self.value, self.interval, self.unit)

    @property
    def count(self) -> str:
        """``88 layers``; for pictures the number alone."""
        return str(self.n) if self.pairs == PICTURES else f"{self.n} {self.pairs}"

    def sentence(self) -> str:
        names = f"{self.ours} vs {self.theirs} at {self.setting}"
        return f"{names}: {self.metric} {self.amount} {self.verdict} (n={self.count})"


def difference(names: Names, result: EvalResult, gap: Difference) -> Comparison:
    return Comparison(
        *_fields(names), result.name, "difference", gap.value, gap.interval, gap.n, PICTURES,
        gap.verdict(result.direction), metric_unit(result),
    )  # fmt: skip


def _fields(names: Names) -> tuple[str, str, str, str, bool]:
    return (names.ours, names.theirs, names.precision, names.where, names.headline)


def log_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int) -> Difference | None:
    """Mean over pairs without zeros; None for fewer than two."""
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a > 0.0 and b > 0.0]
    if len(both) < 2:
        return None
    logs = np.log(np.array(both))
    return paired_mean_difference(logs[:, 0], logs[:, 1], replicates=REPLICATES, seed=seed)


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
        """By every metric, layer and denoiser output that both have."""
        found: list[Comparison] = []
        refused: list[str] = []
        for result, compare in self._picture_metrics():
            try:
                found.append(difference(self.names, result, compare(result)))
            except EvalError as error:
                names = self.names
                refused.append(f"{names.ours} vs {names.theirs} at {names.setting}: {error}")
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
            raise EvalError(f"the bootstraps of {mine.name} differ in seed, n or replicates; evaluate both alike")
        other = next(m for m in self.theirs.metrics if m.name == mine.name)
        _require_finite(mine.name, mine.value, other.value)
        return paired_replicate_difference((mine.value, ours[0]), (other.value, theirs[0]), mine.n)

    def _by_picture(self, mine: EvalResult) -> Difference:
        ours, theirs = read_per_image(self.ours, mine.name), read_per_image(self.theirs, mine.name)
        _require_finite(mine.name, *ours, *theirs)
        return paired_mean_difference(ours, theirs, replicates=REPLICATES, seed=self.ours.seed)

    def _errors(self) -> list[Comparison]:
        ours, theirs = self.ours.every_layer_error, self.theirs.every_layer_error
        layers = [layer for layer in ours if layer in theirs]
        found = self._ratio("layer error", [ours[k] for k in layers], [theirs[k] for k in layers], LAYERS)
        rows = (self.ours.per_row_output_errors, self.theirs.per_row_output_errors)
        return found + (self._ratio("output error", *rows, CALLS) if len(rows[0]) == len(rows[1]) else [])

    def _ratio(self, name: str, ours: Sequence[float], theirs: Sequence[float], pairs: str) -> list[Comparison]:
        gap = log_ratio(ours, theirs, self.ours.seed)
        if gap is None:
            return []
        value, interval = as_ratio(gap)
        fields = _fields(self.names)
        return [Comparison(*fields, name, "ratio", value, interval, gap.n, pairs, gap.verdict("lower"))]
