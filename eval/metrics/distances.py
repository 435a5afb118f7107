"""FID and KID between two sets of features, in float64 numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends, Has, Network
from segquant_bench.eval.metrics.metric import LAST, Metric
from segquant_bench.eval.metrics.statistics import jackknife_interval, left_out_counts
from segquant_bench.eval.results import EvalResult

if TYPE_CHECKING:
    from segquant_bench.eval.metrics.evaluation import Evaluation
    from segquant_bench.eval.metrics.networks.features import Extractor

GROUPS = 256
"""Of pictures that the jackknife leaves out; each picture by itself, if there are no more."""
MANY_PICTURES, FEW_GROUPS = 1000, 100
"""Above so many pictures one FID takes seconds, so there are fewer groups."""
Replicates = Callable[..., np.ndarray]


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to features `x` [n, d] and `y` [m, d].

    |μx − μy|² + tr Σx + tr Σy − 2 tr (Σx Σy)^½ (Heusel et al., arXiv 1706.08500, eq. 6), unbiased covariances.
    """
    x, y = _checked(x, y)
    return _distance(x, y, np.ones(len(x)), np.ones(len(y)))


def frechet_replicates(x: np.ndarray, y: np.ndarray, counts: np.ndarray, *, paired: bool) -> np.ndarray:
    """`frechet_distance` in every resample; float64 [replicates].

    `paired` resamples rows of x and y together; otherwise y stays as it is.
    """
    x, y = _checked(x, y)
    if not paired:
        return _replicates_fixed(x, y, counts)
    x, y = _compress(x, y)
    return np.array([_distance(x, y, c, c) for c in counts])


def _distance(x: np.ndarray, y: np.ndarray, x_counts: np.ndarray, y_counts: np.ndarray) -> float:
    x_mean, a = _mean_and_root(x, x_counts)
    y_mean, b = _mean_and_root(y, y_counts)
    gap = x_mean - y_mean
    return _combine(gap @ gap, np.sum(a * a), np.sum(b * b), _nuclear_norm(a, b))


def _combine(gap: float, x_trace: float, y_trace: float, root_trace: float) -> float:
    value = float(gap + x_trace + y_trace - 2.0 * root_trace)
    return value if value > 1e-12 * (x_trace + y_trace) else 0.0


def _mean_and_root(x: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and a matrix A with AᵀA the covariance of x repeated `counts` times."""
    drawn = counts > 0
    rows, weights = x[drawn], counts[drawn].astype(np.float64)
    total = weights.sum()
    mean = weights @ rows / total
    return mean, (rows - mean) * np.sqrt(weights / (total - 1.0))[:, None]


def _nuclear_norm(a: np.ndarray, b: np.ndarray) -> float:
    if min(len(a), len(b)) > a.shape[1]:
        a, b = _triangle(a), _triangle(b)
    return float(np.linalg.svd(a @ b.T, compute_uv=False).sum())


def _triangle(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _compress(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same inner products in fewer dimensions."""
    both = np.concatenate([x, y])
    if len(both) >= both.shape[1]:
        return x, y
    coordinates = _triangle(both.T).T
    return coordinates[: len(x)], coordinates[len(x) :]


def _replicates_fixed(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    y_mean, b = _mean_and_root(y, np.ones(len(y)))
    x = x - y_mean
    y_trace = float(np.sum(b * b))
    # Every resample of x is a row mixture of x, so A Bᵀ is the same mixture of the rows of x Bᵀ.
    cross = x @ b.T
    if cross.shape[1] > cross.shape[0]:
        cross = _triangle(cross.T).T
    out = np.empty(len(counts))
    squares = np.einsum("nd,nd->n", x, x)
    for i, c in enumerate(counts):
        n = c.sum()
        mean = c @ x / n
        gap = float(mean @ mean)
        x_trace = (float(c @ squares) - n * gap) / (n - 1.0)
        _, root = _mean_and_root(cross, c)
        out[i] = _combine(gap, x_trace, y_trace, np.linalg.svd(root, compute_uv=False).sum())
    return out


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x·y/d + 1)³: KID (Bińkowski et al., arXiv 1801.01401, eq. 4).

    May be negative.
    """
    x, y = _checked(x, y)
    return float(kernel_replicates(x, y, np.ones((1, len(x)), dtype=np.int64), paired=False)[0])


def kernel_replicates(x: np.ndarray, y: np.ndarray, counts: np.ndarray, *, paired: bool) -> np.ndarray:
    """As `frechet_replicates`."""
    x, y = _checked(x, y)
    kxx, kyy, kxy = _cubic(x, x), _cubic(y, y), _cubic(x, y)
    out = np.empty(len(counts))
    fixed = np.ones(len(y))
    for i, cx in enumerate(counts):
        cy = cx if paired else fixed
        cross = cx @ kxy @ cy / (cx.sum() * cy.sum())
        out[i] = _within(kxx, cx) + _within(kyy, cy) - 2.0 * cross
    return out


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** 3)


def _within(kernel: np.ndarray, counts: np.ndarray) -> float:
    n = counts.sum()
    return float((counts @ kernel @ counts - counts @ np.diag(kernel)) / (n * (n - 1)))


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise EvalError(f"features must be [n, d] and [m, d], got {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise EvalError(f"FID and KID need at least 2 pictures on each side, got {len(x)} and {len(y)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise EvalError("features hold NaN or infinite values; look for broken pictures")
    return x, y


def _load_extractor(backends: Backends) -> Extractor:
    from segquant_bench.eval.metrics.networks.features import fid_extractor  # torch: only where pictures are judged

    return fid_extractor(backends)


def _check_extractor(backends: Backends) -> None:
    from segquant_bench.eval.metrics.networks.features import check_extractor  # torch: only where pictures are judged

    check_extractor(backends)


def _check_pictures(prompts: Sequence[str], backends: Backends) -> None:
    if len(prompts) < 2:
        raise EvalError(f"FID and KID need at least 2 pictures, {len(prompts)} was asked for; use more prompts")


def _keep_part(extractor: Extractor, paths: Sequence[Path], backends: Backends, cache: Path, has: Has) -> None:
    from segquant_bench.eval.metrics.networks.features import keep_fid_part  # torch: only where pictures are judged

    keep_fid_part(extractor, paths, backends.batch_size, cache, has)


EXTRACTOR = Network("fid", _load_extractor, _check_extractor, _keep_part)


def features(evaluation: Evaluation, kind: str) -> np.ndarray:
    """FID features of the pictures (see `Evaluation.paths`), float32 [n, d]."""
    from segquant_bench.eval.metrics.networks.features import fid_features  # torch: only where pictures are judged

    def compute() -> np.ndarray:
        size, cache = evaluation.backends.batch_size, evaluation.cache
        return fid_features(evaluation.network(EXTRACTOR), evaluation.paths(kind), batch_size=size, cache=cache)

    return evaluation.once(f"fid/{kind}", compute)


def set_distance(
    name: str,
    against: str,
    distance: Callable[[np.ndarray, np.ndarray], float],
    replicates: Replicates,
    *,
    paired: str | None = None,
    order: int = LAST,
    headline: bool = False,
    positive: bool = True,
) -> Metric:
    def compute(evaluation: Evaluation) -> EvalResult:
        extractor = evaluation.network(EXTRACTOR)
        ours, target = features(evaluation, "images"), features(evaluation, against)
        evaluation.tensors["features"] = ours
        evaluation.metadata["extractor"] = extractor.name
        n = len(ours)
        counts = left_out_counts(n, groups_of(n))
        value = distance(ours, target)
        left_out = replicates(ours, target, counts, paired=metric.needs_reference)
        interval = jackknife_interval(value, left_out, n, positive=positive)
        result = metric.result(value, n, interval, backend=extractor.backend, network=extractor.name)
        evaluation.left_out[result.name] = left_out
        if metric.needs_reference or evaluation.reference is None:
            return result
        theirs = features(evaluation, "reference")
        delta = value - distance(theirs, target)
        gaps = left_out - replicates(theirs, target, counts, paired=False)
        return replace(result, delta=delta, delta_interval=jackknife_interval(delta, gaps, n))

    metric = Metric(
        name, "lower", compute, against=against, networks=(EXTRACTOR,), check=_check_pictures, paired=paired,
        order=order, headline=headline,
    )  # fmt: skip
    return metric


def groups_of(n: int) -> int:
    """How many groups the jackknife makes of `n` pictures."""
    return min(n, GROUPS) if n <= MANY_PICTURES else FEW_GROUPS


METRICS = (
    set_distance("fid_gt", "real", frechet_distance, frechet_replicates, paired="resamples", order=1),
    set_distance(
        "fid_ref", "reference", frechet_distance, frechet_replicates, paired="resamples", order=0, headline=True
    ),
    set_distance("kid_gt", "real", kernel_distance, kernel_replicates, positive=False),
    set_distance("kid_ref", "reference", kernel_distance, kernel_replicates, positive=False),
)
