"""p-values, adjusted for many comparisons, against their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from segquant_bench.eval.report.comparing.adjust import ADJUSTMENTS, false_discovery_rate, holm, p_value


def _closed_bonferroni(p: list[float]) -> list[float]:
    """Holm is the closure of Bonferroni's test: a hypothesis falls if every intersection that it is part of does."""
    indices = range(len(p))
    sets = [chosen for size in range(1, len(p) + 1) for chosen in itertools.combinations(indices, size)]
    return [max(min(1.0, len(s) * min(p[i] for i in s)) for s in sets if index in s) for index in indices]


def _least_rejecting_level(p: list[float]) -> list[float]:
    """Benjamini and Hochberg by their definition: the least level at which the k smallest fall for some k."""

    def rejected(level: float) -> set[int]:
        order = sorted(range(len(p)), key=lambda index: p[index])
        ks = [k for k in range(1, len(p) + 1) if p[order[k - 1]] <= k * level / len(p) * (1 + 1e-12)]
        return set(order[: max(ks, default=0)])

    levels = sorted({value * len(p) / k for value in p for k in range(1, len(p) + 1)})
    return [min(level for level in levels if index in rejected(level)) for index in range(len(p))]


@pytest.mark.parametrize("seed", range(12))
def test_adjusted_values_are_those_of_the_definitions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    p = list(generator.uniform(size=1 + seed % 8) ** generator.integers(1, 6))
    p += p[: seed % 3]  # ties
    assert holm(p) == pytest.approx(_closed_bonferroni(p))
    assert false_discovery_rate(p) == pytest.approx(_least_rejecting_level(p))


def test_examples_that_one_can_check_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert false_discovery_rate([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([]) == false_discovery_rate([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_keeps_any_false_finding_rare_and_the_other_their_share() -> None:
    """2,000 simulated reports of 30 comparisons, 20 of them without a difference."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(2000, 30)) + np.where(np.arange(30) < 20, 0.0, 3.0)
    p = 2 * stats.norm.sf(abs(z))
    found = {name: np.array([adjust(list(row)) for row in p]) < 0.05 for name, (_, adjust) in ADJUSTMENTS.items()}
    assert found["holm"][:, :20].any(1).mean() < 0.06
    share = found["fdr"][:, :20].sum(1) / np.maximum(found["fdr"].sum(1), 1)
    assert share.mean() < 0.05 and found["fdr"].sum() > found["holm"].sum()


@pytest.mark.parametrize("df", [7.0, 127.0, math.inf])
def test_p_is_that_of_the_test_behind_the_interval(df: float) -> None:
    for t in (-9.0, -2.0, 0.0, 0.5, 4.0):
        half = stats.t.ppf(0.975, df) if df < math.inf else stats.norm.ppf(0.975)
        expected = 2 * (stats.t.sf(abs(t), df) if df < math.inf else stats.norm.sf(abs(t)))
        assert p_value(0.3 * t, (0.3 * (t - half), 0.3 * (t + half)), df) == pytest.approx(expected)


def test_p_is_below_5_percent_where_the_interval_leaves_zero_out() -> None:
    generator = np.random.default_rng(0)
    for value, below, above in zip(
        *generator.uniform(-2, 2, (1, 300)), *generator.uniform(0.1, 2, (2, 300)), strict=True
    ):
        interval = (value - below, value + above)
        assert (p_value(value, interval, 20.0) < 0.05) == (not interval[0] <= 0.0 <= interval[1])
    assert p_value(1.0, (1.0, 1.0), 5.0) == 0.0 and p_value(0.0, (0.0, 0.0), 5.0) == 1.0
    assert 0.0 < p_value(1.0, (1.1, 1.5), 5.0) < 0.05, "a value outside of its own interval"
