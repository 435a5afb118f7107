"""MX formats and NVFP4 against torchao's emulation, weights and inputs.

The rule for a shared exponent is torchao's FLOOR, that of the specification ("OCP Microscaling Formats (MX)", 1.0,
section 6.3). Codes may differ in the sign of a zero, which weights here do not keep.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segquant import PRECISIONS
from segquant.numerics.grids import GRIDS
from segquant.numerics.input_grid import InputGrid
from tests.segquant.numerics.references.support import (
    KINDS,
    by_block,
    draw,
    is_halfway,
    kept,
    same_but_for_the_sign_of_zero,
)

pytest.importorskip("torchao")
from torchao.prototype.mx_formats import nvfp4_tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import MXTensor, to_mx

ELEMENTS = {"mxfp8": torch.float8_e4m3fn, "mxfp6": "fp6_e2m3", "mxfp4": torch.float4_e2m1fn_x2}
SHAPES = ((5, 96), (1, 512), (33, 64))
NORMAL = [kind for kind in KINDS if kind != "denormal"]
FP4 = GRIDS["fp4_e2m1"].values(torch.device("cpu"))


def _mx(values: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Scale bytes and codes, one in a byte."""
    scales, codes = to_mx(values, ELEMENTS[precision], 32, ScaleCalculationMode.FLOOR)
    codes = codes.view(torch.uint8)
    return scales.view(torch.uint8), _nibbles(codes) if precision == "mxfp4" else codes


def _nibbles(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def _mx_values(values: Tensor, precision: str) -> Tensor:
    found: Tensor = MXTensor.to_mx(values, ELEMENTS[precision], 32, ScaleCalculationMode.FLOOR).dequantize(torch.float)
    return found


@pytest.mark.parametrize("precision", ELEMENTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NORMAL)
def test_mx_scales_codes_and_values(kind: str, shape: tuple[int, int], precision: str) -> None:
    weight = draw(kind, *shape)
    ours, (scales, codes) = kept(weight, precision), _mx(weight, precision)
    used = by_block(weight, 32).abs().amax(-1) > 0  # the scale of a block of zeros is free
    assert torch.equal(ours.buffers["weight_scale"][used], scales[used])
    assert same_but_for_the_sign_of_zero(ours.codes, codes, ours.layout.weight_spec.bits).all()
    assert torch.equal(ours.values, _mx_values(weight, precision))


@pytest.mark.parametrize("precision", ELEMENTS)
def test_mx_of_denormal_blocks(precision: str) -> None:
    """torchao divides by 2^-126 but writes 2^-127: its values are half of what they should be. Ours keep 2^-126."""
    weight = draw("denormal", 4, 64)
    ours, (scales, codes) = kept(weight, precision), _mx(weight, precision)
    assert (ours.buffers["weight_scale"] == 1).all() and (scales == 0).all()
    assert same_but_for_the_sign_of_zero(ours.codes, codes, ours.layout.weight_spec.bits).all()
    values = torch.tensor(2.0**-126, dtype=torch.float64) * GRIDS[PRECISIONS[precision].weight.dtype].decode(codes)
    assert torch.equal(ours.values.double(), values)


@pytest.mark.parametrize("precision", ELEMENTS)
@pytest.mark.parametrize("shape", [(32,), (3, 64), (2, 3, 96), (2, 2, 2, 32)])
@pytest.mark.parametrize("kind", ["random", "heavy", "constant", "huge", "negative", "ties", "zeros"])
def test_mx_inputs(kind: str, shape: tuple[int, ...], precision: str) -> None:
    x = draw(kind, _rows(shape), shape[-1]).reshape(shape)
    assert torch.equal(_run_input(precision, x), _mx_values(x, precision))


def _rows(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() // shape[-1]


def _run_input(precision: str, x: Tensor) -> Tensor:
    spec = PRECISIONS[precision].input
    assert spec is not None and spec.group_size is not None
    pieces = (spec.group_size,) * (x.shape[-1] // spec.group_size)
    return InputGrid(pieces, (False,) * len(pieces), spec).quantize(x, None)


def _nvfp4(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    whole = nvfp4_tensor.per_tensor_amax_to_scale(values.abs().max())
    scales, codes = nvfp4_tensor.nvfp4_quantize(values, 16, whole)
    return whole, scales.view(torch.uint8), _nibbles(codes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["random", "constant", "huge", "negative", "ties"])
def test_nvfp4_scales_and_codes(kind: str, shape: tuple[int, int]) -> None:
    weight = draw(kind, *shape)
    ours, (whole, scales, codes) = kept(weight, "nvfp4"), _nvfp4(weight)
    assert ours.buffers["weight_scale_2"].item() == pytest.approx(whole.item(), rel=2e-7)
    assert torch.equal(ours.buffers["weight_scale"], scales)
    # torchao multiplies by the inverse: at a tie float32's last place decides
    quotient = weight.double() / ours.scales.scale.double().repeat_interleave(16, 1)
    differ = ~same_but_for_the_sign_of_zero(ours.codes, codes, 4)
    assert is_halfway(quotient, FP4, 1e-6)[differ].all() and differ.float().mean() < 0.01


def test_nvfp4_of_small_blocks_beside_large_ones() -> None:
    """The specification has block scales down to e4m3's least, 2^-9; torchao ends at its least normal, 2^-6."""
    sizes = torch.exp2(-torch.arange(20.0))
    weight = draw("random", 8, 16 * 20) * sizes.repeat_interleave(16)
    ours, (whole, scales, codes) = kept(weight, "nvfp4"), _nvfp4(weight)
    theirs = scales.view(torch.float8_e4m3fn).float()
    mine = ours.buffers["weight_scale"].view(torch.float8_e4m3fn).float()
    exact = by_block(weight, 16).abs().amax(-1).double() / 6 / whole.double()
    normal = exact > 2.0**-6
    assert torch.equal(mine[normal], theirs[normal]) and normal.any()
    assert (theirs[~normal] == 2.0**-6).all()
    nearest = (exact * 512).round().clamp_min(1) / 512  # e4m3's denormals are multiples of 2^-9
    assert torch.equal(mine[~normal].double(), nearest[~normal]) and len(mine[~normal].unique()) > 4
    values = FP4[codes.int()] * (theirs * whole).repeat_interleave(16, 1)
    errors = [
        by_block((found - weight).double(), 16).square().sum(-1)[~normal].sum() for found in (ours.values, values)
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("shape", [(16,), (3, 64), (2, 3, 96)])
@pytest.mark.parametrize("kind", ["random", "constant", "huge", "negative", "ties"])
def test_nvfp4_inputs(kind: str, shape: tuple[int, ...]) -> None:
    """Ours have a second scale per token, so torchao sees each token alone."""
    rows = draw(kind, _rows(shape), shape[-1])
    ours = _run_input("nvfp4", rows.reshape(shape)).reshape(rows.shape)
    for row, found in zip(rows, ours, strict=True):
        whole, scales, codes = _nvfp4(row[None])
        scale = (scales.view(torch.float8_e4m3fn).float() * whole).repeat_interleave(16, 1)[0]
        differ = (found - FP4[codes[0].int()] * scale).abs() > 1e-6 * found.abs()
        assert is_halfway(row.double() / scale.double(), FP4, 1e-6)[differ].all()
