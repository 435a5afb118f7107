"""Every element format against ml_dtypes, or against all of its values one by one in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.grids import GRIDS

SMALL = {
    "fp8": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2, "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn, "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip
INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in range(2, 9)]
# bitsandbytes and QLoRA's appendix E print these float32 numbers
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
ONE = torch.ones(())


def codes_of(dtype: str) -> np.ndarray:
    """The codes, as bytes, of all finite values; integers from the least."""
    if dtype not in SMALL:
        count = 16 if dtype == "nf4" else 2 ** int(dtype.strip("uint"))
        return np.arange(count) - (count // 2 if dtype[:3] == "int" else 0)
    found = np.arange(2 ** {"fp8": 8, "fp4": 4, "fp6": 6}[dtype[:3]], dtype=np.uint8)
    return found[np.isfinite(found.view(SMALL[dtype]).astype(np.float64))]


def values_of(dtype: str) -> np.ndarray:
    """The values of `codes_of`, float64."""
    codes = codes_of(dtype)
    if dtype == "nf4":
        return NF4
    return codes.view(SMALL[dtype]).astype(np.float64) if dtype in SMALL else codes.astype(np.float64)


def nearest(x: np.ndarray, dtype: str) -> np.ndarray:
    """The value next to each of float32 or float64 numbers: ties to the even code, of nf4 to the lower value."""
    if dtype in SMALL and x.dtype == np.float32:
        most = np.float32(ml_dtypes.finfo(SMALL[dtype]).max)
        return x.clip(-most, most).astype(SMALL[dtype]).astype(np.float64)
    # ml_dtypes takes float64 to float32 first, which rounds twice
    values = values_of(dtype)
    even = codes_of(dtype) % 2 == 0
    distance = np.abs(x.clip(values.min(), values.max())[:, None] - values)
    tied = distance == distance.min(1, keepdims=True)
    if dtype != "nf4":
        tied &= even | (tied.sum(1, keepdims=True) == 1)
    return values[tied.argmax(1)]


def numbers(kind: str, dtype: str, wide: bool) -> Tensor:
    """Inputs [n] of a kind, float32 or float64, in units of the scale."""
    known = np.unique(values_of(dtype))
    top = np.abs(known).max()
    g = np.random.default_rng(7)
    found = {
        "random": lambda: g.normal(0, top / 3, 2000),
        "small": lambda: g.normal(0, 1, 2000) * np.abs(known[known != 0]).min(),
        "denormal": lambda: np.array([1e-45, -1e-45, 1e-40, -1e-40, 1e-310, -1e-310, 0.0, -0.0]),
        "huge": lambda: np.concatenate([top * g.normal(0, 100, 200), [3e38, -3e38, 1e30, -1e30, 2 * top, -2 * top]]),
        "constant": lambda: np.full(50, 0.7 * top),
        "negative": lambda: -np.abs(g.normal(0, top / 2, 1000)),
        "values": lambda: known,
        "ties": lambda: (known[1:] + known[:-1]) / 2,
    }[kind]()
    found = found if wide else found.astype(np.float32)
    if kind == "ties":  # of nf4 a float32 need not be one: the nearest are just beside it
        found = np.concatenate([found, np.nextafter(found, -np.inf), np.nextafter(found, np.inf)])
    return torch.from_numpy(found)


KINDS = ("random", "small", "denormal", "huge", "constant", "negative", "values", "ties")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", GRIDS)
def test_the_nearest_value_and_its_code(dtype: str, kind: str, wide: bool) -> None:
    x = numbers(kind, dtype, wide)
    before, expected = x.clone(), nearest(x.numpy(), dtype)
    found = F.fake_quantize(x, ONE, dtype)
    assert found.dtype == x.dtype and torch.equal(x, before)
    assert np.array_equal(found.double().numpy(), expected)
    codes = F.quantize(x, ONE, dtype)
    assert torch.equal(F.dequantize(codes, ONE.to(x.dtype), dtype), found)
    raw = codes.view(torch.uint8).numpy()
    if dtype in SMALL:  # the sign of a small negative number's zero too
        theirs = np.copysign(expected, x.numpy()).astype(SMALL[dtype])
        assert np.array_equal(raw, theirs.view(np.uint8))
    elif dtype == "nf4":
        assert np.array_equal(NF4[raw], expected)
    else:
        assert np.array_equal(raw, expected.astype(np.int64).astype(np.uint8)), "two's complement"


@pytest.mark.parametrize("dtype", GRIDS)
def test_what_a_grid_says_of_itself(dtype: str) -> None:
    grid, known = GRIDS[dtype], values_of(dtype)
    assert (grid.low, grid.high) == (known.min(), known.max())
    assert 2**grid.bits >= len(known) > 2 ** (grid.bits - 1)
    # OCP Microscaling Formats 1.0 has these of its floats; integers that of the largest power of two; nf4, which ends
    # at 1, gets a scale that reaches over the largest number
    named = {"fp8": 8, "fp8_e5m2": 15, "fp6_e2m3": 2, "fp6_e3m2": 4, "fp4_e2m1": 2, "nf4": -1}
    expected = named.get(dtype, int(known.max()).bit_length() - 1)
    assert grid.exponent == expected
    assert grid.kind == ("nf" if dtype == "nf4" else "fp" if dtype in SMALL else dtype.strip("0123456789"))


@pytest.mark.parametrize("dtype", GRIDS)
def test_every_code_is_read_and_made_again(dtype: str) -> None:
    grid, known = GRIDS[dtype], values_of(dtype)
    codes = torch.from_numpy(codes_of(dtype)).to(torch.int8 if dtype[:3] == "int" else torch.uint8)
    assert np.array_equal(grid.decode(codes).numpy(), known) and grid.decode(codes).dtype == torch.float32
    again = grid.encode(grid.decode(codes))
    assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8)), "minus zero has a code of its own"


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", GRIDS)
def test_cells_bracket_their_values(dtype: str, wide: bool) -> None:
    known = np.unique(values_of(dtype))
    for kind in KINDS:
        x = numbers(kind, dtype, wide)
        lower, gap = (part.double().numpy() for part in GRIDS[dtype].cell(x.clone()))
        upper = lower + gap
        places = np.searchsorted(known, lower)
        assert np.array_equal(known[places], lower)
        # of nf4 in float32 the width of a cell is rounded
        assert np.allclose(known[places + 1], upper, rtol=0, atol=0 if dtype != "nf4" else 1e-7)
        inside = x.double().numpy().clip(known[0], known[-1])
        assert (lower <= inside).all() and (inside <= upper + (1e-7 if dtype == "nf4" else 0)).all()


@pytest.mark.parametrize("dtype", GRIDS)
def test_strides_and_short_floats_change_nothing(dtype: str) -> None:
    x = torch.randn(24, 40, generator=torch.Generator().manual_seed(3)) * F.code_max(dtype) / 2
    scale = torch.linspace(0.5, 2, 24)[:, None]
    expected = F.fake_quantize(x, scale, dtype)
    turned = x.T.contiguous().T
    assert torch.equal(F.fake_quantize(turned, scale, dtype), expected)
    assert torch.equal(
        F.quantize(turned, scale, dtype).view(torch.uint8), F.quantize(x, scale, dtype).view(torch.uint8)
    )
    for lower, gap in (GRIDS[dtype].cell(turned.T), GRIDS[dtype].cell(x.T.contiguous())):
        assert lower.shape == gap.shape == (40, 24)
    short = x.bfloat16()
    assert torch.equal(F.fake_quantize(short, scale, dtype), F.fake_quantize(short.float(), scale, dtype))


@pytest.mark.parametrize("dtype", GRIDS)
def test_fake_quantize_is_dequantized_codes_and_idempotent(dtype: str) -> None:
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(4)) * 3
    scale = F.choose_scale(x.abs().amax(1, keepdim=True), dtype)
    fake = F.fake_quantize(x, scale, dtype)
    assert torch.equal(fake, F.dequantize(F.quantize(x, scale, dtype), scale, dtype))
    assert torch.equal(F.fake_quantize(fake, scale, dtype), fake)
