from __future__ import annotations

import numpy as np
import pytest

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.distances import frechet_distance, frechet_replicates
from segquant_bench.eval.metrics.statistics import (
    Difference,
    bootstrap_counts,
    mean_interval,
    mean_replicates,
    paired_mean_difference,
    paired_replicate_difference,
    percentile_interval,
    recentred_interval,
)


def test_counts_are_resamples_and_seeded() -> None:
    counts = bootstrap_counts(17, 50, seed=3)
    assert counts.shape == (50, 17)
    assert (counts.sum(axis=1) == 17).all()
    assert np.array_equal(counts, bootstrap_counts(17, 50, seed=3))
    assert not np.array_equal(counts, bootstrap_counts(17, 50, seed=4))
    assert counts.var() == pytest.approx(1 - 1 / 17, rel=0.2)


def test_mean_replicates_by_repetition() -> None:
    values = np.array([1.0, 5.0, -2.0])
    counts = np.array([[3, 0, 0], [1, 1, 1], [0, 2, 1]])
    assert mean_replicates(values, counts) == pytest.approx([1.0, 4 / 3, 8 / 3])


def test_interval_covers_a_gaussian_mean() -> None:
    rng = np.random.default_rng(1)
    hits, trials, n = 0, 600, 100
    for trial in range(trials):
        low, high = mean_interval(rng.normal(2.0, 3.0, n), bootstrap_counts(n, 400, seed=trial))
        hits += low <= 2.0 <= high
    # 95 % nominal, 0.9 % binomial noise; a percentile bootstrap at n = 100 covers about 94 %.
    assert 0.92 <= hits / trials <= 0.965


def test_interval_width_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 500)
    low, high = mean_interval(values, bootstrap_counts(500, 2000, seed=0))
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / np.sqrt(500), rel=0.08)


def test_single_value_has_no_interval() -> None:
    assert mean_interval(np.array([1.0]), bootstrap_counts(1, 10, seed=0)) is None


def test_pairing_removes_what_prompts_share() -> None:
    rng = np.random.default_rng(2)
    prompt = rng.normal(0.0, 10.0, 100)
    ours, theirs = prompt + 0.5 + rng.normal(0, 0.2, 100), prompt + rng.normal(0, 0.2, 100)
    difference = paired_mean_difference(ours, theirs, replicates=500, seed=0)
    assert difference.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert difference.interval[1] - difference.interval[0] < 0.2
    assert difference.verdict("higher") == "better"
    assert difference.verdict("lower") == "worse"


def test_verdict_of_an_interval_around_zero() -> None:
    assert Difference(0.1, (-0.1, 0.3), 5).verdict("higher") == "not distinguishable"
    assert Difference(0.0, (0.0, 0.0), 5).verdict("lower") == "not distinguishable"
    assert Difference(-0.2, (-0.3, -0.1), 5).verdict("lower") == "better"
    assert Difference(-0.2, (-0.3, -0.1), 5).verdict("higher") == "worse"


def test_fid_interval_surrounds_its_value() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 30)), rng.normal(size=(60, 30))
    value = frechet_distance(x, y)
    drawn = frechet_replicates(x, y, bootstrap_counts(40, 200, seed=0), paired=False)
    # The reason for recentring: repeated pictures push every replicate up.
    assert percentile_interval(drawn)[0] > value
    low, high = recentred_interval(value, drawn)
    assert low < value < high


def test_paired_replicates() -> None:
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])
    difference = paired_replicate_difference((1.5, ours), (2.5, theirs), n=9)
    assert difference == Difference(-1.0, (-1.0, -1.0), 9)
    assert difference.verdict("lower") == "better"


def test_bad_input() -> None:
    with pytest.raises(EvalError, match="equally long"):
        paired_mean_difference(np.zeros(3), np.zeros(4), replicates=10, seed=0)
    with pytest.raises(EvalError, match="replicates=0"):
        bootstrap_counts(4, 0, seed=0)
