"""One paired comparison, and what it says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from segquant_bench.eval.report.comparing.adjust import p_value
from segquant_bench.eval.report.runs.sizes import is_no_larger
from segquant_bench.eval.results import Interval
from segquant_bench.eval.tables.numbers import format_difference, format_ratio, joined

PICTURES, LAYERS, PROMPTS = "pictures", "layers", "prompts"
BETTER_ONE = {"better": "a", "worse": "b"}
TIE = "not distinguishable"
AGAINST = " against "
"""Between the precisions of a pair of two: "w4a8 against w8a8"."""


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
        interval: 95 % paired interval.
        pairs: what they are pairs of, ``"pictures"``.
        verdict: ``"better"``, ``"worse"`` or ``"not distinguishable"``: by the interval and, if known, `adjusted`.
        size_ratio: the first run's bytes by the second's; None if unknown.
        seeds: calibration seeds that the value is a mean of; `sd` their standard deviation (of ratios, of logarithms).
        df: degrees of freedom of the interval.
        adjusted: the p-value, adjusted for all comparisons of the report.
        direction: of the metric.
        path: the first run's `results.json`, and `other` the second's; that is None of the unquantized model.
    """

    metric: str
    kind: str
    value: float
    interval: Interval
    n: int
    pairs: str
    verdict: str
    unit: str = ""
    size_ratio: float | None = None
    seeds: int = 1
    sd: float | None = None
    df: float = math.inf
    adjusted: float | None = None
    direction: str = "lower"
    path: Path | None = None
    other: Path | None = None

    @property
    def p(self) -> float:
        """Of no difference, from the interval."""
        if self.kind == "difference":
            return p_value(self.value, self.interval, self.df)
        return p_value(log(self.value), logs(self.interval), self.df)

    @property
    def ahead(self) -> str:
        """Which one, "a" or "b", is better with comparable bytes or fewer; else empty."""
        if self.verdict not in BETTER_ONE or not self.size_ratio:
            return ""
        ratio = self.size_ratio if self.verdict == "better" else 1.0 / self.size_ratio
        return BETTER_ONE[self.verdict] if is_no_larger(ratio) else ""

    @property
    def amount(self) -> str:
        """``+1.23 dB [+0.90, +1.50]`` or ``×0.720 [0.680, 0.770]``."""
        if self.kind == "ratio":
            return format_ratio(self.value, self.interval)
        return format_difference(self.value, self.interval, self.unit)

    @property
    def count(self) -> str:
        """``88 layers``; for pictures the number alone."""
        told = str(self.n) if self.pairs == PICTURES else f"{self.n} {self.pairs}"
        return told if self.seeds == 1 else f"{told} × {self.seeds} seeds"

    def sentence(self) -> str:
        names = f"{self.ours} vs {self.theirs} at {self.setting}"
        return f"{names}: {self.metric} {self.amount} {self.verdict} (n={self.count})"


def log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf


def logs(interval: Interval) -> Interval:
    return log(interval[0]), log(interval[1])
