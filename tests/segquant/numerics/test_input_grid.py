"""Rounding of inputs: by arithmetic and with broadcast scales what casts, searches and loops over pieces give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.numerics.grids import GRIDS, NF4
from segquant.numerics.input_grid import InputGrid


def values(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[..., ::7] *= 1e-3
    x[..., 0], x[0] = 0.0, -x[0].abs()
    return x


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e5m2"])
def test_8_bit_floats_round_as_torch_casts(dtype: str) -> None:
    """Every pattern of a float32's upper half, with ties, their neighbours and what is no number; codes to the sign."""
    kind = torch.float8_e4m3fn if dtype == "fp8" else torch.float8_e5m2
    upper = torch.arange(2**16, dtype=torch.int64) << 16
    bits = torch.cat([upper, upper + 1, upper + 0x8000, upper + 0xFFFF])
    x = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(torch.float32)
    high = torch.finfo(kind).max
    expected = x.clamp(-high, high).to(kind)
    assert torch.equal(GRIDS[dtype].round_(x.clone()).nan_to_num(9e9), expected.float().nan_to_num(9e9))
    known = ~x.isnan()
    codes = F.quantize(x, torch.ones(1), dtype)
    assert torch.equal(codes.view(torch.uint8)[known], expected.view(torch.uint8)[known])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_round_as_a_search(dtype: torch.dtype) -> None:
    known = np.array(NF4, dtype=np.float32).astype(np.float64)
    x = torch.cat([values(40, 30, seed=1).flatten(), torch.linspace(-2, 2, 4001)]).to(dtype)
    x = torch.cat([x, torch.from_numpy((known[1:] + known[:-1]) / 2).to(dtype), torch.tensor([np.inf, -np.inf])])
    codes = np.searchsorted((known[1:] + known[:-1]) / 2, x.double().numpy(), side="left")
    assert np.array_equal(GRIDS["nf4"].encode(x).numpy(), codes)
    assert np.array_equal(GRIDS["nf4"].round_(x.clone()).numpy(), known[codes].astype(x.numpy().dtype))


GRID_OF = {
    "int8": QuantSpec("int8", "group", 16, dynamic=True),
    "fp8": QuantSpec("fp8", "group", 16, dynamic=True, scale_dtype="e8m0"),
    "fp4": QuantSpec("fp4_e2m1", "group", 16, dynamic=True, scale_dtype="e4m3"),
    "nf4": QuantSpec("nf4", "group", 16, dynamic=True),
}


@pytest.mark.parametrize("pieces", [(16,) * 4, (16, 32, 16), (64,)], ids=str)
@pytest.mark.parametrize("negative", ["one", "dual", "some", "zero_point"])
@pytest.mark.parametrize("format", GRID_OF)
def test_an_input_is_rounded_piece_by_piece(format: str, negative: str, pieces: tuple[int, ...]) -> None:
    """Each piece, and each sign where it has two scales, by itself."""
    spec = GRID_OF[format]
    if negative == "zero_point" and format != "int8":
        with pytest.raises(ValueError, match="has no zero point"):
            InputGrid(pieces, (True,) * len(pieces), spec, negative)
        return
    dual = tuple(negative != "one" and (negative != "some" or index % 2 == 0) for index in range(len(pieces)))
    grid = InputGrid(pieces, dual, spec, "zero_point" if negative == "zero_point" else "dual")
    x = values(3, 5, 64)
    before, (first, second) = x.clone(), grid.dynamic(x)
    parts, scales = x.split(pieces, -1), [side.split(1, -1) for side in (first, second)]
    expected = []
    for part, above, below, two in zip(parts, *scales, dual, strict=True):
        if negative == "zero_point":
            expected.append((part / above).round().clamp(-below, 255 - below) * above)
            continue
        scale = torch.where(part >= 0, above, below if two else above).expand_as(part)
        expected.append(GRIDS[spec.dtype].round_(part / scale) * scale)
    assert torch.equal(grid.quantize(x, None), torch.cat(expected, -1)) and torch.equal(x, before)
    assert torch.equal(grid.quantize(x, (first, second)), torch.cat(expected, -1))
