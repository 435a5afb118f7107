"""How often the intervals that tables print hold the truth, by tables of simulated experiments: 95 % of them.

The truth is what an experiment of that size gives on average. Counts of 400 tables scatter by 1.1 %; skewed values of
few pictures cost a few more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segquant_bench.eval.metrics.distances import (
    frechet_distance,
    frechet_replicates,
    groups_of,
    kernel_distance,
    kernel_replicates,
)
from segquant_bench.eval.metrics.statistics import (
    bootstrap_counts,
    jackknife_interval,
    left_out_counts,
    mean_interval,
    paired_left_out_difference,
    paired_mean_difference,
    percentile_interval,
    share_difference_interval,
)
from segquant_bench.eval.report.comparing.pairs import log_ratio, log_ratio_by_prompt
from segquant_bench.eval.report.main_table.columns import layer_error, output_error
from segquant_bench.eval.results import RunResult

TABLES = 400
Interval = tuple[float, float]


def coverage(intervals: Iterable[Interval | None], truth: float) -> float:
    held = [interval is not None and interval[0] <= truth <= interval[1] for interval in intervals]
    assert len(held) >= 150
    return float(np.mean(held))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def run(**values: object) -> RunResult:
    base = RunResult(
        Path("results.json"), "x", "m", "rtn", "w4a8", "d", 0, 4, "", (), {}, (), 0.1, {}, {}, ("a",), 1, 4,
        config={"quantize": ["denoiser"]},
    )  # fmt: skip
    return replace(base, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [3, 8, 32, 128])
def test_means_over_pictures(n: int) -> None:
    """psnr, ssim, clip_score, perceptual distances; the last are skewed."""
    counts, draw = bootstrap_counts(n, 1000, seed=0), rng()
    even = draw.normal(40.0, 3.0, (TABLES, n))
    assert 0.92 <= coverage((mean_interval(row, counts) for row in even), 40.0) <= 0.98
    skewed = np.exp(0.5 * draw.normal(size=(TABLES, n)))
    assert 0.88 <= coverage((mean_interval(row, counts) for row in skewed), np.exp(0.125)) <= 0.98


def test_a_plain_bootstrap_of_few_pictures_covers_too_little() -> None:
    counts, rows = bootstrap_counts(4, 1000, seed=0), rng().normal(size=(TABLES, 4))
    assert coverage((percentile_interval(counts @ row / 4) for row in rows), 0.0) < 0.87


@pytest.mark.parametrize("n", [16, 128])
def test_differences_over_pictures(n: int) -> None:
    draw = rng(1)
    shared = draw.normal(40.0, 5.0, (TABLES, n))
    ours, theirs = (shared + gap + draw.normal(0.0, 1.0, (TABLES, n)) for gap in (0.7, 0.0))
    found = (paired_mean_difference(a, b, replicates=200, seed=0).interval for a, b in zip(ours, theirs, strict=True))
    assert 0.92 <= coverage(found, 0.7) <= 0.98


@pytest.mark.parametrize(("n", "share"), [(100, 0.97), (256, 0.965), (100, 0.5), (128, 1.0)])
def test_shares_of_hits(n: int, share: float) -> None:
    """caption_top1."""
    hits, counts = rng(2).random((TABLES, n)) < share, bootstrap_counts(n, 10, seed=0)
    assert 0.92 <= coverage((mean_interval(row, counts) for row in hits), share) <= 1.0


def test_differences_of_shares() -> None:
    """caption_top1 minus the unquantized model's: few captions differ."""
    draw = rng(3)
    theirs = draw.random((TABLES, 128)) < 0.95
    ours = np.where(draw.random((TABLES, 128)) < 0.04, ~theirs, theirs)
    truth = 0.04 * (0.05 - 0.95)
    found = (share_difference_interval(a, b) for a, b in zip(ours, theirs, strict=True))
    assert 0.92 <= coverage(found, truth) <= 0.985


def test_layer_errors() -> None:
    """Of layers drawn like the model's: their geometric mean, and a method's ratio to another's."""
    draw = rng(4)
    ours = np.exp(draw.normal(-4.0, 0.7, (200, 60)))
    theirs = ours * np.exp(draw.normal(0.2, 0.3, (200, 60)))
    cells = (layer_error(run(layer_errors={str(i): float(e) for i, e in enumerate(row)})) for row in ours)
    assert 0.91 <= coverage((cell and cell.interval for cell in cells), float(np.exp(-4.0))) <= 0.985
    gaps = (log_ratio(a.tolist(), b.tolist(), 0) for a, b in zip(ours, theirs, strict=True))
    assert 0.91 <= coverage((gap and gap.interval for gap in gaps), -0.2) <= 0.985


class Calls:
    """Squared errors and energies of the held-out calls: prompts differ, and steps do more."""

    def __init__(self, tables: int, prompts: int, each: int, seed: int) -> None:
        draw = rng(seed)
        steps = draw.integers(0, 20, (tables, prompts, each)) / 19
        prompt = draw.normal(size=(2, tables, prompts, 1))
        self.energies = np.exp(0.3 * prompt[0] - steps)
        noise = draw.normal(size=(tables, prompts, each))
        self.errors = self.energies * np.exp(0.5 * prompt[1] + 2.0 * steps + 0.3 * noise)

    @property
    def value(self) -> float:
        return float(np.sqrt(self.errors.sum() / self.energies.sum()))


@pytest.mark.parametrize("prompts", [2, 8, 32])
def test_output_errors(prompts: int) -> None:
    """By prompts. By calls, as if a prompt's were independent, intervals hold the truth far less often."""
    each, calls = 4, Calls(TABLES, prompts, 4, seed=5)
    truth = Calls(1, 100_000, each, seed=6).value
    rows = [index // each for index in range(prompts * each)]
    cells, by_call = [], []
    counts = bootstrap_counts(len(rows), 200, seed=0)
    for errors, energies in zip(calls.errors.reshape(TABLES, -1), calls.energies.reshape(TABLES, -1), strict=True):
        value, relative = float(np.sqrt(errors.sum() / energies.sum())), np.sqrt(errors / energies)
        cells.append(output_error(run(
            output_error=value, per_row_output_errors=tuple(relative), per_row_energies=tuple(energies),
            per_row_prompts=tuple(rows),
        )))  # fmt: skip
        low, high = percentile_interval(counts @ relative / relative.sum())
        by_call.append((low * value, high * value))
    assert 0.91 <= coverage((cell and cell.interval for cell in cells), truth) <= 0.98
    assert coverage(by_call, truth) < 0.88


def test_ratios_of_output_errors() -> None:
    draw, tables = rng(7), 4 * TABLES
    prompts = np.repeat(np.arange(8), 4).tolist()
    gap = -0.3 + 0.2 * draw.normal(size=(tables, 8, 1)) + 0.1 * draw.normal(size=(tables, 8, 4))
    theirs = np.exp(draw.normal(-3.0, 0.5, (tables, 32)))
    ours = theirs * np.exp(gap.reshape(tables, 32))
    found = [log_ratio_by_prompt(a.tolist(), b.tolist(), prompts) for a, b in zip(ours, theirs, strict=True)]
    assert 0.93 <= coverage((each and each.interval for each in found), -0.3) <= 0.97
    assert all(each is not None and each.n == 8 for each in found)


class Features:
    """Of pictures and of their quantized twins: correlated, not negative, fewer pictures than channels."""

    N, D = 24, 48

    def __init__(self, seed: int) -> None:
        self.draw = rng(seed)
        self.scale = 1 / np.sqrt(np.arange(1, self.D + 1))
        self.turn = np.linalg.qr(self.draw.normal(size=(self.D, self.D)))[0]
        self.shift = 0.3 * self.draw.normal(size=self.D) * self.scale
        self.real = self.pictures()

    def pictures(self) -> np.ndarray:
        return np.maximum(self.draw.normal(size=(self.N, self.D)) * self.scale @ self.turn + 0.1, 0.0)

    def quantized(self, pictures: np.ndarray, size: float) -> np.ndarray:
        noise = self.draw.normal(size=pictures.shape) * self.scale
        return np.maximum(pictures + size * (self.shift + noise), 0.0)


Distance = tuple[Callable[..., float], Callable[..., np.ndarray], bool]
FID: Distance = (frechet_distance, frechet_replicates, True)
KID: Distance = (kernel_distance, kernel_replicates, False)


def left_out(kind: Distance, ours: np.ndarray, target: np.ndarray, paired: bool) -> tuple[float, np.ndarray]:
    counts = left_out_counts(len(ours), groups_of(len(ours)))
    return kind[0](ours, target), kind[1](ours, target, counts, paired=paired)


@pytest.mark.parametrize("kind", [FID, KID], ids=["fid", "kid"])
@pytest.mark.parametrize("against", ["reference", "real"])
def test_distances_of_sets(kind: Distance, against: str) -> None:
    """fid_ref, fid_gt, kid_ref and kid_gt: the mean over experiments with as many pictures."""
    made, found = Features(8), []
    for _ in range(150):
        pictures = made.pictures()
        ours = made.quantized(pictures, 0.3)
        found.append(left_out(kind, ours, pictures if against == "reference" else made.real, against == "reference"))
    truth = float(np.mean([value for value, _ in found]))
    intervals = [jackknife_interval(value, drawn, made.N, positive=kind[2]) for value, drawn in found]
    assert 0.9 <= coverage(intervals, truth) <= 0.985


@pytest.mark.parametrize("against", ["reference", "real"])
def test_differences_of_distances(against: str) -> None:
    """One method's FID minus another's of the same prompts, and a method's fid_gt minus the unquantized model's."""
    made, gaps = Features(9), []
    for _ in range(150):
        pictures = made.pictures()
        target, paired = (pictures, True) if against == "reference" else (made.real, False)
        theirs = made.quantized(pictures, 0.2) if paired else pictures
        ours = made.quantized(pictures, 0.3)
        both = [left_out(FID, each, target, paired) for each in (ours, theirs)]
        gaps.append(paired_left_out_difference(both[0], both[1], made.N))
    truth = float(np.mean([gap.value for gap in gaps]))
    assert 0.9 <= coverage([gap.interval for gap in gaps], truth) <= 0.985
