from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.distances import frechet_distance, frechet_replicates
from segquant_bench.eval.metrics.statistics import (
    Difference,
    bootstrap_counts,
    clustered_spread,
    jackknife_error,
    jackknife_interval,
    left_out_counts,
    mean_interval,
    mean_replicates,
    paired_mean_difference,
    paired_replicate_difference,
    percentile_interval,
    recentred_interval,
    share_difference_interval,
    share_interval,
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


@pytest.mark.parametrize(("n", "groups"), [(12, 12), (30, 7)])
def test_jackknife_of_a_mean_is_its_standard_error(n: int, groups: int) -> None:
    """With one item a group exactly; with groups of unequal size (30 = 2·5 + 5·4), that of their pseudo-values."""
    values = np.random.default_rng(4).normal(size=n)
    counts = left_out_counts(n, groups)
    assert ((counts == 0).sum(axis=0) == 1).all() and counts.sum() == n * (groups - 1)
    left_out = counts @ values / counts.sum(axis=1)
    error = jackknife_error(float(values.mean()), left_out, n)
    if n == groups:
        assert error == pytest.approx(values.std(ddof=1) / np.sqrt(n))
        low, high = jackknife_interval(float(values.mean()), left_out, n)
        assert (low, high) == pytest.approx(t.interval(0.95, n - 1, values.mean(), error))
    sizes = n - counts.sum(axis=1)
    sums = (1 - counts) @ (values - values.mean())
    assert error**2 == pytest.approx(np.mean(sums**2 / (sizes * (n - sizes))))


def test_jackknife_ignores_a_bias_that_all_samples_of_a_size_share() -> None:
    """FID's grows as 1/n: it moves values without a group up, and must not widen the interval."""
    n, groups = 30, 7
    counts = left_out_counts(n, groups)
    values = np.random.default_rng(5).normal(size=n)
    rows = counts.sum(axis=1)
    plain = counts @ values / rows
    error = jackknife_error(float(values.mean()), plain, n)
    assert jackknife_error(float(values.mean()) + 3.0 / n, plain + 3.0 / rows, n) == pytest.approx(error)


def test_a_positive_statistic_stays_positive() -> None:
    left_out = np.array([1.0, 4.0, 0.2, 2.0])
    low, high = jackknife_interval(1.0, left_out, 4, positive=True)
    assert 0.0 < low < 1.0 < high and low * high == pytest.approx(1.0)
    assert jackknife_interval(0.0, np.zeros(4), 4, positive=True) == (0.0, 0.0)
    assert jackknife_interval(0.0, left_out, 4, positive=True)[0] == 0.0
    with pytest.raises(EvalError, match="needs 2 to 4 groups, 5 were asked for"):
        left_out_counts(4, 5)


def test_clusters_of_alike_calls() -> None:
    """Against the jackknife written out; copies of calls in their cluster change nothing."""
    draw = np.random.default_rng(6)
    above, below = draw.uniform(1, 2, 6), draw.uniform(1, 2, 6)
    clusters = ["a", "a", "b", "c", "c", "c"]
    values = []
    for name in "abc":
        kept = [index for index, each in enumerate(clusters) if each != name]
        values.append(np.log(above[kept].sum() / below[kept].sum()))
    want = np.sqrt(2 / 3 * np.sum((values - np.mean(values)) ** 2))
    spread = clustered_spread(above, below, clusters, log=True)
    assert spread is not None and (spread.clusters, spread.error) == (3, pytest.approx(want))
    assert spread.half == pytest.approx(t.ppf(0.975, 2) * want)
    twice = clustered_spread(np.tile(above, 2), np.tile(below, 2), clusters * 2, log=True)
    assert twice is not None and twice.error == pytest.approx(want)
    assert clustered_spread(above, below, ["a"] * 6, log=True) is None
    assert clustered_spread(np.array([1.0, 0.0]), np.ones(2), ["a", "b"], log=True) is None


def test_shares_against_another_implementation() -> None:
    from scipy.stats import binomtest

    for hits, n in ((0, 10), (7, 10), (247, 256), (10, 10)):
        found = share_interval(hits, n)
        want = binomtest(hits, n).proportion_ci(method="wilson")
        assert found == pytest.approx((want.low, want.high), abs=1e-12)
    ours, theirs = np.array([True, True, False, True]), np.array([True, False, True, True])
    low, high = share_difference_interval(ours, theirs)
    assert low == pytest.approx(-high) and 0.3 < high < 1.0
    assert mean_interval(ours, bootstrap_counts(4, 9, seed=0)) == share_interval(3, 4)
