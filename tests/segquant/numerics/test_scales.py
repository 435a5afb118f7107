"""How scales are chosen and kept, against ml_dtypes, numpy's float16 and the formulas in float64."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from segquant import QuantizationError
from segquant.numerics import functional as F
from segquant.numerics.grids import GRIDS
from segquant.numerics.scales import K_BITS, SCALE_DTYPES, SUPER, scales_named

TINY = 2.0**-126


def positive(*shape: int, spread: float = 2.0, seed: int = 0) -> Tensor:
    return torch.exp(spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def group_of(scale_dtype: str) -> int | None:
    return 32 if scale_dtype in K_BITS else None


def kept(scale_dtype: str, values: Tensor, signed: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """Buffers of scales [rows, columns] of one branch, and what is read from them."""
    scales = scales_named(scale_dtype, group_of(scale_dtype), signed)
    stored = scales.store("s", values)
    for name, (shape, dtype) in scales.shapes("s", *values.shape, 1).items():
        assert (tuple(stored[name].shape), stored[name].dtype) == (shape, dtype)
    return stored, scales.read("s", stored, values.shape[1], (len(values),))


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
def test_what_was_read_is_stored_and_read_the_same(scale_dtype: str) -> None:
    values = positive(5, 16)
    _, once = kept(scale_dtype, values)
    again, twice = kept(scale_dtype, once)
    assert once.dtype == torch.float32 and once.shape == values.shape
    if scale_dtype not in K_BITS:  # whose largest code is rounded anew
        assert torch.equal(twice, once)
        assert all(torch.equal(again[name], buffer) for name, buffer in kept(scale_dtype, once)[0].items())
    bound = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11, "q0": 2**-11, "q1": 2**-11, "e8m0": 0.5, "e4m3": 2**-4}
    if scale_dtype in bound:
        least = values.max() / 448 * 2**-6 if scale_dtype == "e4m3" else 0  # below it the steps stay the same
        assert bool(((once - values).abs() <= bound[scale_dtype] * values * (1 + 1e-6) + 2**-4 * least).all())


@pytest.mark.parametrize("scale_dtype, theirs", [
    ("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16), ("q0", np.float16), ("q1", np.float16),
])  # fmt: skip
def test_short_floats_are_rounded_to_nearest_but_never_to_nothing(scale_dtype: str, theirs: type) -> None:
    values = torch.cat(
        (positive(40, 8, spread=4), torch.tensor([[1e-9, 1e-7, 2**-24, 65504.0, 65500.0, 1.0, 3.0, 6e-8]]))
    )
    stored, read = kept(scale_dtype, values.clamp_max(65504))
    expected = values.clamp_max(65504).numpy().astype(theirs)
    assert torch.equal(
        stored["s"].double(),
        torch.from_numpy(np.maximum(expected.astype(np.float64), 2.0**-24 if theirs is np.float16 else 0)),
    )
    assert torch.equal(read, stored["s"].float())
    _, negative = kept(scale_dtype, -values.clamp_max(65504))
    assert torch.equal(negative, -read)


def test_e8m0_is_ml_dtypes_of_a_power_rounded_down() -> None:
    values = torch.cat((positive(60, 8, spread=12), torch.tensor([[1.0, 2.0, 3.999, 4.0, TINY, 2.0**127, 3e38, 0.75]])))
    stored, read = kept("e8m0", values)
    powers = 2.0 ** np.floor(np.log2(values.double().numpy()))
    assert np.array_equal(stored["s"].numpy(), powers.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
    assert np.array_equal(read.double().numpy(), stored["s"].numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64))


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e5m2", "fp6_e2m3", "fp6_e3m2", "fp4_e2m1", "int8"])
def test_e8m0_scales_follow_the_mx_rule(dtype: str) -> None:
    """OCP Microscaling Formats 1.0, section 6.3: the largest power of two up to amax, over that of the format.

    Of int8 the specification's codes are multiples of 2⁻⁶: ours are whole, so that its emax of 0 is 6 here.
    """
    emax = {"fp8": 8, "fp8_e5m2": 15, "fp6_e2m3": 2, "fp6_e3m2": 4, "fp4_e2m1": 2, "int8": 6}[dtype]
    amax = torch.cat((positive(400, spread=10), torch.tensor([1.0, 2.0, 0.5, 1.9999999, 448.0, 6.0, 3.4e38, 1e-30])))
    found = F.choose_scale(amax, dtype, "e8m0")
    assert found.tolist() == [2.0 ** max(math.floor(math.log2(value)) - emax, -126) for value in amax.tolist()]
    # float32's own denormals, of which the specification has one more power
    assert F.choose_scale(torch.tensor([1e-42, 0.0]), dtype, "e8m0").tolist() == [TINY, 1.0]


@pytest.mark.parametrize("dtype", GRIDS)
def test_powers_of_two_cut_off_less_than_they_leave(dtype: str) -> None:
    """The scale is the power with the amax within a factor of the range that its formula promises."""
    amax = positive(500, spread=5)
    ratio = amax / F.choose_scale(amax, dtype, "e8m0")
    top = F.code_max(dtype)
    assert bool((ratio < 2 * 2.0 ** math.floor(math.log2(top))).all())
    assert bool((ratio >= (top if dtype != "nf4" else 1) / 2).all())
    if dtype == "nf4":
        assert bool((ratio <= 1).all()), "its values end at a power of two, and nothing is cut off"


@pytest.mark.parametrize("dtype", ["int8", "int4", "uint8", "uint4", "uint2"])
def test_powers_of_two_reach_over_a_range_with_a_zero_point(dtype: str) -> None:
    above, below = positive(500, seed=1), positive(500, seed=2)
    levels = F.code_max(dtype) - F.code_min(dtype)
    scale, zero = F.choose_zero_point(above, below, dtype, "e8m0")
    width = (above + below).double()
    assert bool((torch.log2(scale) % 1 == 0).all())
    # the MX rule, of numbers up to `levels`: at most what is beyond 2^bits − 1 of 2^bits steps is lost
    steps = width / scale
    assert bool((steps < levels + 1).all()) and bool((steps >= (levels + 1) / 2).all())
    assert bool(((zero >= 0) & (zero <= levels) & (zero % 1 == 0)).all())


def test_e4m3_scales_are_fp8_times_one_float32() -> None:
    values = positive(30, 8, spread=3)
    stored, read = kept("e4m3", values)
    second = np.float32(values.max().item()) / np.float32(448)
    assert stored["s_2"].tolist() == [second]
    codes = (values.numpy() / second).clip(2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(stored["s"].numpy(), codes.view(np.uint8))
    assert np.array_equal(read.numpy(), codes.astype(np.float32) * second)
    assert bool((read > 0).all()), "the least scale is no zero"


def test_e4m3_scales_of_branches_have_a_second_scale_each() -> None:
    scales = scales_named("e4m3", None, True)
    parts = [positive(3, 4, seed=1), 50 * positive(5, 4, seed=2)]
    stored = [scales.store("s", part) for part in parts]
    joined = {name: torch.cat([each[name] for each in stored]) for name in stored[0]}
    assert {name: (tuple(t.shape), t.dtype) for name, t in joined.items()} == scales.shapes("s", 8, 4, 2)
    expected = torch.cat([kept("e4m3", part)[1] for part in parts])
    assert torch.equal(scales.read("s", joined, 4, (3, 5)), expected)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale_dtype", K_BITS)
def test_super_blocks_are_codes_times_a_float16(scale_dtype: str, signed: bool) -> None:
    bits, count = K_BITS[scale_dtype], SUPER // 32
    values = positive(6, 3 * count)
    values[0, :count] = 0  # a super-block of nothing, beside others
    values[1, 2] = 0
    stored, read = kept(scale_dtype, values, signed)
    top = 2 ** (bits - signed) - 1
    for row in range(6):
        whole = sum(int(byte) << (8 * place) for place, byte in enumerate(stored["s"][row].tolist()))
        assert stored["s"].shape[1] == 3 * count * bits / 8
        for block in range(3):
            part = values[row, block * count : (block + 1) * count].numpy()
            scale = np.float16(part.max() / np.float32(top))
            assert stored["s_super"][row, block].item() == float(scale)
            for index, value in enumerate(part.tolist()):
                code = whole >> ((block * count + index) * bits) & (2**bits - 1)
                expected = 0 if scale == 0 else min(round(float(np.float32(value) / np.float32(scale))), top)
                expected = max(expected, int(value > 0))  # nothing can be divided by a scale of zero
                assert code == expected
                assert read[row, block * count + index].item() == float(np.float32(code) * np.float32(scale))


@pytest.mark.parametrize("scale_dtype", ["float16", "q0", "q1", "k4", "k6", "k8"])
def test_float16_that_is_too_small_a_type_is_refused(scale_dtype: str) -> None:
    values = torch.full((1, 8), 1e8)
    with pytest.raises(
        QuantizationError, match=r"a scale of \S+ is beyond float16, which ends at 65504; choose scale_dtype='bfloat16'"
    ):
        kept(scale_dtype, values)
    assert torch.isfinite(kept("bfloat16", values)[1]).all()


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16", "e8m0", "e4m3"])
@pytest.mark.parametrize("dtype", ["int8", "int3", "fp8", "fp4_e2m1", "nf4"])
def test_chosen_scales_are_those_that_are_kept(dtype: str, scale_dtype: str) -> None:
    """Of inputs, which store none: the same grid as a weight's."""
    amax = positive(7, 6, seed=5)
    found = F.choose_scale(amax, dtype, scale_dtype)
    if scale_dtype == "e4m3":  # neighbours in a row share the second scale
        rows = [kept(scale_dtype, row[None] / F.code_max(dtype))[1] for row in amax]
        expected = torch.cat(rows)
    elif scale_dtype == "e8m0":
        expected = 2.0 ** (torch.floor(torch.log2(amax.double())) - GRIDS[dtype].exponent).float()
    else:
        expected = kept(scale_dtype, amax / F.code_max(dtype))[1]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16", "e8m0", "e4m3"])
@pytest.mark.parametrize("dtype", GRIDS)
def test_nothing_almost_nothing_and_very_much(dtype: str, scale_dtype: str) -> None:
    amax = torch.tensor([[0.0, 1e-44, 1e-30, 1.0, 1e38], [0.0, 0.0, 0.0, 0.0, 0.0]])
    calls = [F.choose_scale(amax, dtype, scale_dtype)]
    if GRIDS[dtype].kind in ("int", "uint"):
        scale, zero = F.choose_zero_point(amax, amax, dtype, scale_dtype)
        assert bool((zero >= 0).all()) and bool((zero <= F.code_max(dtype) - F.code_min(dtype)).all())
        calls.append(scale)
    if GRIDS[dtype].low:
        calls += F.choose_dual_scale(amax, amax.flip(1), dtype, scale_dtype)
    for found in calls:
        assert bool(torch.isfinite(found).all()) and bool((found > 0).all())
        assert bool((found[1] == 1).all()), "nothing gets a scale of one"
        assert bool((F.fake_quantize(torch.zeros(2, 5), found, dtype) == 0).all())
        assert bool(torch.isfinite(F.fake_quantize(amax, found, dtype)).all())
    assert calls[0][0, 0] == 1, "nor does a zero beside others have one of its own"


def test_zero_points_against_their_definition() -> None:
    above, below = positive(200, seed=1).double(), positive(200, seed=2).double()
    for dtype, levels in (("uint8", 255), ("int8", 255), ("uint4", 15), ("uint3", 7), ("int2", 3)):
        scale, zero = F.choose_zero_point(above, below, dtype)
        for s, z, a, b in zip(scale.tolist(), zero.tolist(), above.tolist(), below.tolist(), strict=True):
            assert s == (a + b) / levels and z == round(b / s)
