from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.distances import (
    frechet_distance,
    frechet_replicates,
    kernel_distance,
    kernel_replicates,
)
from segquant_bench.eval.metrics.statistics import bootstrap_counts


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + shift


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel et al. eq. 6 as it is written, in float64."""
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(sx @ sy)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(sx) + np.trace(sy) - 2 * np.trace(root).real)


@pytest.mark.parametrize(("n", "m"), [(40, 50), (200, 150), (8, 200), (200, 8)])
def test_frechet_matches_matrix_root(n: int, m: int) -> None:
    x, y = features(n, 16, 0), features(m, 16, 1, shift=0.3)
    if min(n, m) > 16:
        assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-9)
    else:  # singular: the root of a nearly singular product is good to half the digits only
        assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-5)


def test_frechet_matches_clean_fid() -> None:
    from cleanfid.fid import frechet_distance as theirs

    x, y = features(90, 24, 2), features(70, 24, 3, shift=0.1)
    want = theirs(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert frechet_distance(x, y) == pytest.approx(float(want), rel=1e-7)


def test_frechet_known_gaussians() -> None:
    # One dimension: (μ1 − μ2)² + (σ1 − σ2)² with the sample moments.
    x, y = features(30, 1, 4), features(25, 1, 5, shift=2.0) * 3.0
    want = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(want, rel=1e-12)


def test_frechet_of_equal_sets_is_zero() -> None:
    x = features(20, 64, 6)
    assert 0.0 <= frechet_distance(x, x.copy()) < 1e-9


@pytest.mark.parametrize("d", [8, 100])
@pytest.mark.parametrize("paired", [True, False])
def test_frechet_replicates_are_distances_of_resamples(d: int, paired: bool) -> None:
    x = features(30, d, 7)
    y = x + 0.3 * features(30, d, 8) if paired else features(45, d, 8, shift=0.2)
    counts = bootstrap_counts(30, 5, seed=0)
    got = frechet_replicates(x, y, counts, paired=paired)
    for value, c in zip(got, counts, strict=True):
        rows = np.repeat(np.arange(30), c)
        assert value == pytest.approx(frechet_distance(x[rows], y[rows] if paired else y), rel=1e-9)


def test_frechet_replicates_fixed_target_with_many_rows() -> None:
    x, y = features(12, 40, 9), features(300, 40, 10)
    counts = np.ones((1, 12), dtype=np.int64)
    got = frechet_replicates(x, y, counts, paired=False)[0]
    assert got == pytest.approx(frechet_distance(x, y), rel=1e-10)


def test_kernel_distance_matches_clean_fid() -> None:
    from cleanfid.fid import kernel_distance as theirs

    x, y = features(25, 12, 11), features(25, 12, 12, shift=0.5)
    # With subsets as large as the sets, clean-fid's random subsets are permutations of the whole.
    assert kernel_distance(x, y) == pytest.approx(theirs(x, y, num_subsets=1), rel=1e-9)


def test_kernel_distance_by_hand() -> None:
    x, y = features(4, 3, 13), features(5, 3, 14)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    xx = np.mean([k(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_kernel_replicates_are_distances_of_resamples() -> None:
    x, y = features(10, 4, 15), features(10, 4, 16)
    counts = bootstrap_counts(10, 4, seed=1)
    got = kernel_replicates(x, y, counts, paired=True)
    for value, c in zip(got, counts, strict=True):
        rows = np.repeat(np.arange(10), c)
        assert value == pytest.approx(kernel_distance(x[rows], y[rows]), rel=1e-9)


def test_bad_features() -> None:
    good = features(4, 3, 17)
    with pytest.raises(EvalError, match="at least 2"):
        frechet_distance(good[:1], good)
    with pytest.raises(EvalError, match="must be"):
        frechet_distance(good, good[:, :2])
    with pytest.raises(EvalError, match="NaN"):
        kernel_distance(good, np.full_like(good, np.nan))
