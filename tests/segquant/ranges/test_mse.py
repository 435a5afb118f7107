"""Least-squares ranges against a brute-force search in float64, and never worse than the maximum."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from segquant import PRECISIONS
from segquant.numerics import functional as F
from segquant.numerics.fake_quant import expand_weight_scale, round_weight
from segquant.numerics.formats import QuantSpec
from segquant.numerics.input_grid import InputGrid
from segquant.ranges import Amax, Mse
from segquant.ranges.amax import weight_scale
from segquant.ranges.mse import SHRINK, mse_input_range, mse_weight_extremes, mse_weight_scale
from tests.segquant import decoding

CUTS = [((1,) * 6, (8,)), ((1,) * 6, (4, 4)), ((6,), (8,)), ((2, 4), (3, 5)), ((1,) * 6, (7, 1))]


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rounded(x: Tensor, scale: float, dtype: str) -> Tensor:
    return torch.from_numpy(decoding.nearest((x / scale).numpy(), dtype)) * scale


def weight_error(weight: Tensor, scale: Tensor, dtype: str, cut: tuple, importance: Tensor) -> float:
    wide = expand_weight_scale(scale, *cut)
    return float(((F.fake_quantize(weight, wide, dtype) - weight).square() * importance).sum())


@pytest.mark.parametrize("rows, columns", CUTS)
@pytest.mark.parametrize("dtype", ["int8", "int4", "int3", "fp4_e2m1", "nf4"])
@pytest.mark.parametrize("weighted", [False, True])
def test_weight_scales_are_the_best_of_the_grid(
    rows: tuple[int, ...], columns: tuple[int, ...], dtype: str, weighted: bool
) -> None:
    weight = tensor(6, 8)
    importance = tensor(8, seed=1).square() if weighted else torch.ones(8, dtype=torch.float64)
    found = mse_weight_scale(weight, QuantSpec(dtype), rows, columns, importance if weighted else None)
    assert found.dtype == torch.float64 and found.shape == (len(rows), len(columns))
    high = F.code_max(dtype)
    for i, top in enumerate(weight.split(rows)):
        for j, (block, part) in enumerate(zip(top.split(columns, 1), importance.split(columns), strict=True)):
            scales = [float(block.abs().max()) / high * share for share in SHRINK]
            errors = [float(((rounded(block, scale, dtype) - block).square() * part).sum()) for scale in scales]
            assert float(found[i, j]) == pytest.approx(scales[errors.index(min(errors))], rel=1e-12)


@pytest.mark.parametrize("rows, columns", CUTS)
@pytest.mark.parametrize("dtype", ["int8", "int4", "fp8", "int3", "fp4_e2m1", "nf4"])
def test_never_worse_than_the_maximum_and_within_the_grid(
    rows: tuple[int, ...], columns: tuple[int, ...], dtype: str
) -> None:
    weight, importance = tensor(6, 8).float(), tensor(8, seed=1).square().float()
    amax = weight_scale(weight, QuantSpec(dtype), rows, columns)
    found = mse_weight_scale(weight, QuantSpec(dtype), rows, columns, importance)
    assert found.dtype == torch.float32 and found.shape == amax.shape
    cut = (rows, columns)
    least, most = (weight_error(weight, scale, dtype, cut, importance) for scale in (found, amax))
    assert least <= most * (1 + 1e-6)
    assert bool((found <= amax).all()) and bool((found >= amax * (min(SHRINK) - 1e-6)).all())


def blocks(weight: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> Iterator[tuple[int, int, Tensor]]:
    for i, top in enumerate(weight.split(rows)):
        for j, block in enumerate(top.split(columns, 1)):
            yield i, j, block


@pytest.mark.parametrize("rows, columns", CUTS)
@pytest.mark.parametrize("dtype", ["int8", "fp6_e2m3", "fp4_e2m1", "nf4"])
def test_powers_of_two_are_the_best_of_three(rows: tuple[int, ...], columns: tuple[int, ...], dtype: str) -> None:
    weight = tensor(6, 8, seed=4)
    found = mse_weight_scale(weight, QuantSpec(dtype, scale_dtype="e8m0"), rows, columns)
    emax = {"int8": 6, "fp6_e2m3": 2, "fp4_e2m1": 2, "nf4": -1}[dtype]
    for i, j, block in blocks(weight, rows, columns):
        rule = 2.0 ** (math.floor(math.log2(float(block.abs().max()))) - emax)
        errors = {scale: float((rounded(block, scale, dtype) - block).square().sum()) for scale in
                  (rule, 2 * rule, rule / 2)}  # fmt: skip
        assert float(found[i, j]) == min(errors, key=lambda scale: errors[scale])


@pytest.mark.parametrize("rows, columns", CUTS)
def test_q0_scales_keep_the_sign_that_gives_the_extreme_the_lowest_code(
    rows: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    weight = tensor(6, 8, seed=5)
    found = mse_weight_scale(weight, QuantSpec("int4", scale_dtype="q0"), rows, columns)
    for i, j, block in blocks(weight, rows, columns):
        extreme = float(block.flatten()[block.abs().argmax()])
        scales = [float(np.float16(np.float64(extreme / -8 * share))) for share in SHRINK]
        errors = [float((rounded(block, scale, "int4") - block).square().sum()) for scale in scales]
        assert float(found[i, j]) == scales[errors.index(min(errors))]


def between(x: Tensor, above: float, below: float, levels: int, least: bool) -> Tensor:
    """On a grid of `levels` steps from −below to above, with zero on it or starting from −below exactly."""
    if least:
        scale = (above + below) / levels or 1.0  # of a constant
        return ((x + below) / scale).round().clamp(0, levels) * scale - below
    above, below = max(above, 0.0), max(below, 0.0)
    scale = (above + below) / levels
    zero = min(max(round(below / scale), 0), levels)
    return ((x / scale).round() + zero).clamp(0, levels).sub(zero) * scale


@pytest.mark.parametrize("rows, columns", CUTS)
@pytest.mark.parametrize("dtype, scale_dtype", [("uint4", "float32"), ("uint2", "float32"), ("uint4", "q1")])
@pytest.mark.parametrize("moved", [0.0, 0.7, -3.0])
def test_ranges_with_a_zero_point_or_a_least_value(
    rows: tuple[int, ...], columns: tuple[int, ...], dtype: str, scale_dtype: str, moved: float
) -> None:
    """The best share of both ends, then of each in turn."""
    weight = tensor(6, 8, seed=6) + moved
    spec, levels, least = QuantSpec(dtype, scale_dtype=scale_dtype), 2 ** int(dtype[4]) - 1, scale_dtype == "q1"
    above, below = mse_weight_extremes(weight, spec, rows, columns)
    for i, j, block in blocks(weight, rows, columns):

        def error(ends: tuple[float, float], block: Tensor = block) -> float:
            return float((between(block, *ends, levels, least) - block).square().sum())

        ends = float(block.max()), float(-block.min())
        most = error(ends)
        for both in ((1, 1), (1, 0), (0, 1)):
            tried = [tuple(end * (share if moves else 1) for end, moves in zip(ends, both, strict=True))
                     for share in SHRINK]  # fmt: skip
            ends = min(tried, key=error) if error(min(tried, key=error)) < error(ends) else ends
        assert (float(above[i, j]), float(below[i, j])) == pytest.approx(ends, rel=1e-12)
        assert error(ends) <= most


@pytest.mark.parametrize(
    "precision", ["w4a16_nf4", "nvfp4", "mxfp4", "w3a16", "w4a8_asym", "q4_0", "q4_1", "q4_k", "q3_k"]
)
def test_searched_ranges_beat_the_maximum_where_scales_are_kept_short(precision: str) -> None:
    """As they are kept, that is after their scales were rounded: in sum, not block by block."""
    spec, weight = PRECISIONS[precision].weight, tensor(16, 512, seed=7).float()
    assert spec is not None and spec.group_size is not None
    rows, columns = (1,) * 16, (spec.group_size,) * (512 // spec.group_size)
    errors = []
    for ranges in (Mse(), Amax()):
        scales = ranges.weight_scales(weight, spec, rows, columns)
        errors.append(float((round_weight(weight, scales, rows, columns, spec.dtype) - weight).norm()))
    assert errors[0] < errors[1]


def test_a_gaussian_row_at_4_bits_is_clipped_and_an_important_peak_is_not() -> None:
    """The best 4-bit range of a Gaussian is about 2.6 standard deviations, far below the maximum of many numbers."""
    weight = tensor(4, 4096)
    scale = mse_weight_scale(weight, QuantSpec("int4"), (1,) * 4, (4096,))
    assert bool(((scale * 7 > 2.2) & (scale * 7 < 3.0)).all())
    peaks = weight.abs().argmax(1)
    importance = torch.ones(4096, dtype=torch.float64)
    importance[peaks] = 1e6
    kept = mse_weight_scale(weight, QuantSpec("int4"), (1,) * 4, (4096,), importance)
    assert bool((kept > scale).all())


def test_numbers_already_on_the_grid_and_zeros_keep_the_maximum() -> None:
    weight = torch.tensor([[7.0, -3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert mse_weight_scale(weight, QuantSpec("int4"), (1, 1), (4,)).flatten().tolist() == [1.0, 1.0]


INT8, INT4 = QuantSpec("int8"), QuantSpec("int4")


def ranges(rows: Tensor, pieces: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return tuple(F.piece_max((sign * rows).amax(0).clamp_min(0), pieces) for sign in (1, -1))  # type: ignore[return-value]


def silu_rows(n: int = 300) -> Tensor:
    rows = tensor(n, 12)
    rows[:, 5:] = torch.nn.functional.silu(2 * rows[:, 5:])
    rows[3, 1], rows[5, 9] = 9.0, -14.0
    return rows


@pytest.mark.parametrize("spec", [INT8, INT4])
@pytest.mark.parametrize("weighted", [False, True])
def test_input_ranges_are_the_best_of_the_grid(spec: QuantSpec, weighted: bool) -> None:
    rows, pieces, dual = silu_rows(), (5, 7), (False, True)
    positive, negative = ranges(rows, pieces)
    importance = tensor(12, seed=1).square() if weighted else torch.ones(12, dtype=torch.float64)
    grid = InputGrid(pieces, dual, spec)
    above, below = mse_input_range(rows, positive, negative, grid, importance if weighted else None)
    low, high = F.code_min(spec.dtype), F.code_max(spec.dtype)

    def best(x: Tensor, parts: Tensor, full: float, code: float) -> float:
        errors = [float(((rounded(x, full * share / code, spec.dtype) - x).square() * parts).sum()) for share in SHRINK]
        return full * SHRINK[errors.index(min(errors))]

    plain, split = rows.split(pieces, 1)
    first, second = importance.split(pieces)
    peak = float(torch.maximum(positive[0], negative[0]))
    assert max(float(above[0]), float(below[0])) == pytest.approx(best(plain, first, peak, high), rel=1e-12)
    assert float(above[0] / positive[0]) == pytest.approx(float(below[0] / negative[0]), rel=1e-12)
    expected = best(split.clamp_min(0), second, float(positive[1]), high)
    assert float(above[1]) == pytest.approx(expected, rel=1e-12)
    expected = best(split.clamp_max(0), second, float(negative[1]), -low)
    assert float(below[1]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "negative"),
    [("int8", "dual"), ("int4", "dual"), ("fp8", "dual"), ("int8", "zero_point"), ("int4", "zero_point")],
)
@pytest.mark.parametrize("dual", [(False, False), (True, True), (True, False)])
def test_input_error_never_grows(dtype: str, negative: str, dual: tuple[bool, ...]) -> None:
    rows, pieces = silu_rows().bfloat16(), (4, 8)
    grid = InputGrid(pieces, dual, QuantSpec(dtype), negative)
    largest, smallest = (side.float() for side in ranges(rows, pieces))

    def error(found: tuple[Tensor, Tensor]) -> float:
        values = rows.float()
        return float((grid.quantize(values, grid.scales(*found)) - values).square().sum())

    found = mse_input_range(rows, largest, smallest, grid)
    assert error(found) <= error((largest, smallest)) * (1 + 1e-6)
    assert all(bool((new <= old).all()) for new, old in zip(found, (largest, smallest), strict=True))


def test_input_that_is_never_negative_or_always_zero() -> None:
    rows = tensor(50, 4).abs()
    rows[:, 2:] = 0
    positive, negative = ranges(rows, (2, 2))
    above, below = mse_input_range(rows, positive, negative, InputGrid((2, 2), (True, True), INT4))
    assert 0 < float(above[0]) <= float(positive[0])
    assert [float(above[1]), *below.tolist()] == [0.0, 0.0, 0.0]
