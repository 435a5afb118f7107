"""Number formats against torch's own fake quantization, exhaustive grids and float8 casts."""

from __future__ import annotations

import pytest
import torch

from segquant.numerics import functional as F


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("dtype, low, high", [("int8", -128, 127), ("int4", -8, 7)])
def test_per_tensor_equals_torch(dtype: str, low: int, high: int) -> None:
    x, scale = values(64, 33), 0.0625  # a power of two: torch multiplies by the inverse, which is then exact
    ours = F.fake_quantize(x, torch.tensor(scale), dtype)
    assert torch.equal(ours, torch.fake_quantize_per_tensor_affine(x, scale, 0, low, high))


@pytest.mark.parametrize("dtype, low, high", [("int8", -128, 127), ("int4", -8, 7)])
def test_per_channel_equals_torch(dtype: str, low: int, high: int) -> None:
    x = values(16, 65)
    scale = torch.tensor([2.0**-k for k in range(1, 9)] * 2)
    ours = F.fake_quantize(x, scale[:, None], dtype)
    theirs = torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(16, dtype=torch.int32), 0, low, high)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["int8", "int4", "fp8"])
def test_fake_quantize_is_dequantized_codes_and_idempotent(dtype: str) -> None:
    x = values(40, 50)
    before = x.clone()
    scale = F.choose_scale(x.abs().amax(1, keepdim=True), dtype)
    fake = F.fake_quantize(x, scale, dtype)
    assert torch.equal(fake, F.dequantize(F.quantize(x, scale, dtype), scale))
    assert torch.equal(F.fake_quantize(fake, scale, dtype), fake)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_rounding_is_to_nearest_within_range(dtype: str) -> None:
    x = values(30, 30)
    scale = F.choose_scale(x.abs().amax(), dtype)
    assert (F.fake_quantize(x, scale, dtype) - x).abs().max() <= scale / 2 * (1 + 1e-6)


def test_fp8_is_the_nearest_representable_value() -> None:
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = grid[~grid.isnan()].unique()
    x = values(500) * 100
    exact = grid[(x.clamp(-448, 448)[:, None] - grid).abs().argmin(1)]
    assert torch.equal(F.fake_quantize(x, torch.tensor(1.0), "fp8"), exact)
    assert F.fake_quantize(torch.tensor([1e9, -1e9]), torch.tensor(1.0), "fp8").tolist() == [448.0, -448.0]


def test_scales_of_nothing_and_of_almost_nothing_are_usable() -> None:
    amax = torch.tensor([0.0, 1e-44, 1e-30, 3e38])
    for dtype in ("int8", "int4", "fp8"):
        scale = F.choose_scale(amax, dtype)
        assert torch.isfinite(scale).all() and (scale > 0).all()
        assert F.fake_quantize(torch.zeros(4), scale, dtype).eq(0).all()
        assert torch.isfinite(F.fake_quantize(amax, scale, dtype)).all()


def test_dual_scale_follows_the_paper() -> None:
    x = torch.nn.functional.silu(values(200, 8))
    pos, neg = F.choose_dual_scale(x.amax(), -x.amin(), "int8")
    assert pos == x.amax() / 127 and neg == -x.amin() / 128
    fake = F.dual_fake_quantize(x, pos, neg, "int8")
    # the paper's two products: each sign apart, the other sign zero
    two = F.fake_quantize(x.clamp_min(0), pos, "int8") + F.fake_quantize(x.clamp_max(0), neg, "int8")
    assert torch.equal(fake, two)
    negatives = x < 0
    assert (fake - x)[negatives].abs().max() <= neg / 2 * (1 + 1e-6)
    plain = F.fake_quantize(x, F.choose_scale(x.abs().amax(), "int8"), "int8")
    assert (fake - x)[negatives].norm() < 0.2 * (plain - x)[negatives].norm()


def test_dual_scale_of_a_side_never_seen_is_the_other_sides() -> None:
    pos, neg = F.choose_dual_scale(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0]), "int8")
    assert torch.equal(pos, torch.tensor([2 / 127, 3 / 128, 1.0]))
    assert torch.equal(neg, torch.tensor([2 / 127, 3 / 128, 1.0]))


@pytest.mark.parametrize("columns", [1, 2, 7, 16])
def test_int4_packing_round_trip(columns: int) -> None:
    codes = torch.randint(-8, 8, (16, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    packed = F.pack_int4(codes)
    assert packed.dtype == torch.uint8 and packed.shape == (16, (columns + 1) // 2)
    assert torch.equal(F.unpack_int4(packed, columns), codes)
    assert torch.equal(F.unpack_int4(F.pack_int4(codes.T), 16), codes.T)


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (1, 8, 3)])
def test_pieces(sizes: tuple[int, ...]) -> None:
    x = values(3, 5, 12)
    found = F.piece_max(x, sizes)
    assert torch.equal(found, torch.stack([piece.amax(-1) for piece in x.split(sizes, -1)], -1))
    spread = F.expand_pieces(found, sizes).expand_as(x)
    for index, piece in enumerate(spread.split(sizes, -1)):
        assert (piece == found[..., index : index + 1]).all()
