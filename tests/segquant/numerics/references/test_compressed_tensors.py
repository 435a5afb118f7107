"""compressed-tensors (of vLLM and LLM Compressor): integers with and without zero points, fp8, MX, NVFP4.

Its functions get our scales where its rule for them is another one: it takes int8's from amax / 127.5, not amax / 127,
and rounds a shared exponent up where the largest element would round up, which the MX specification does not.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segquant import QuantSpec
from segquant.numerics.grids import GRIDS
from tests.segquant.numerics.references.support import Kept, by_block, draw, is_halfway, kept

pytest.importorskip("compressed_tensors")
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

SHAPES = ((5, 96), (33, 64))
NORMAL = ["random", "heavy", "constant", "huge", "negative", "ties", "zeros"]
GROUP = 32


def _spec(dtype: str, granularity: str, **more: str) -> QuantSpec:
    more = {"scale_dtype": "float32", **more}
    return QuantSpec(dtype, granularity, GROUP if granularity == "group" else None, **more)


def _arguments(spec: QuantSpec) -> QuantizationArgs:
    return QuantizationArgs(
        num_bits=spec.bits,
        type="int" if spec.grid.kind in ("int", "uint") else "float",
        symmetric=spec.symmetric,
        strategy=spec.granularity,
        group_size=spec.group_size,
    )


def _rounded(weight: Tensor, ours: Kept, arguments: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """Its codes and values of a weight, with our scales and zero points."""
    scale, zero = ours.scales.scale, ours.scales.zero
    if zero is not None:  # its codes are signed
        zero = zero - (1 << (arguments.num_bits - 1))
    codes = quantize(weight, scale, zero, arguments)
    return codes, dequantize(codes, scale, zero, arguments)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("dtype", [f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9)])
@pytest.mark.parametrize("kind", NORMAL)
def test_integers(kind: str, dtype: str, granularity: str) -> None:
    weight = draw(kind, *SHAPES[0])
    ours = kept(weight, _spec(dtype, granularity))
    codes, values = _rounded(weight, ours, _arguments(ours.layout.weight_spec))
    start = 1 << (ours.layout.weight_spec.bits - 1) if dtype.startswith("u") else 0
    differ = ours.codes != codes + start
    assert torch.equal(ours.values[~differ], values[~differ])
    # a zero point is added before we divide and after it divides: at a tie float32's last place decides
    wide = ours.scales.scale.repeat_interleave(weight.shape[1] // ours.scales.scale.shape[1], 1)
    assert is_halfway(weight.double() / wide, torch.arange(-300.0, 301.0), 1e-5)[differ].all()
    assert not differ.any() if start == 0 else differ.float().mean() < 0.05


@pytest.mark.parametrize("granularity", ["channel", "group"])
@pytest.mark.parametrize("dtype", ["uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "uint8"])
@pytest.mark.parametrize("kind", NORMAL)
def test_scales_and_zero_points(kind: str, dtype: str, granularity: str) -> None:
    weight = draw(kind, *SHAPES[1])
    spec = _spec(dtype, granularity)
    ours, block = kept(weight, spec), by_block(weight, GROUP if granularity == "group" else weight.shape[1])
    scale, zero = calculate_qparams(block.amin(-1), block.amax(-1), _arguments(spec))
    used = block.abs().amax(-1) > 0
    assert ours.scales.zero is not None and used.any()
    assert torch.equal(ours.scales.scale[used], scale[used])
    assert torch.equal(ours.scales.zero[used], zero.float()[used] + (1 << (spec.bits - 1)))


@pytest.mark.parametrize("kind", NORMAL)
def test_fp8_with_its_own_scales(kind: str) -> None:
    weight = draw(kind, *SHAPES[1])
    spec = _spec("fp8", "channel")
    ours, arguments = kept(weight, spec), _arguments(spec)
    scale, _ = calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), arguments)
    assert torch.equal(ours.scales.scale, scale)
    assert torch.equal(ours.values, _rounded(weight, ours, arguments)[1])


@pytest.mark.parametrize("dtype", ["fp8", "fp6_e2m3", "fp4_e2m1"])
@pytest.mark.parametrize("kind", NORMAL)
def test_mx_elements(kind: str, dtype: str) -> None:
    weight = draw(kind, *SHAPES[0])
    ours = kept(weight, _spec(dtype, "group", scale_dtype="e8m0"))
    assert torch.equal(ours.values, _rounded(weight, ours, _arguments(ours.layout.weight_spec))[1])


@pytest.mark.parametrize("dtype", ["fp8", "fp6_e2m3", "fp4_e2m1"])
def test_mx_scales_are_its_own_but_where_it_rounds_up(dtype: str) -> None:
    weight = draw("heavy", *SHAPES[1])
    spec = _spec(dtype, "group", scale_dtype="e8m0")
    arguments = _arguments(spec).model_copy(update={"scale_dtype": torch.uint8})
    amax = by_block(weight, GROUP).abs().amax(-1)
    theirs, _ = calculate_qparams(-amax, amax, arguments)
    ours = kept(weight, spec).scales.scale
    mantissa = torch.frexp(amax.double()).mantissa * 2
    up = theirs == 2 * ours
    # it rounds a mantissa of 1.75 up, of e2m3 one of 1.9375
    assert torch.equal(up, mantissa >= (1.9375 if dtype == "fp6_e2m3" else 1.75)) and up.any()
    assert torch.equal(theirs[~up], ours[~up])


@pytest.mark.parametrize("kind", ["random", "constant", "huge", "negative", "ties"])
def test_nvfp4(kind: str) -> None:
    """Its second scale is the inverse of ours, so that ties of both roundings may fall to either side."""
    weight = draw(kind, *SHAPES[1])
    ours = kept(weight, "nvfp4")
    block = by_block(weight, 16)
    arguments = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn
    )
    whole = generate_gparam(weight.amin(), weight.amax())
    scale, _ = calculate_qparams(block.amin(-1), block.amax(-1), arguments, whole)
    codes = ours.buffers["weight_scale"].view(torch.float8_e4m3fn).float()
    assert (1 / whole).item() == pytest.approx(ours.buffers["weight_scale_2"].item(), rel=1e-6)
    assert torch.equal(codes, scale)
    found = quantize(weight, scale, None, arguments, global_scale=whole)
    table = GRIDS["fp4_e2m1"].values(torch.device("cpu"))
    differ = table[ours.codes.int()] != found
    assert is_halfway(weight.double() / ours.scales.scale.repeat_interleave(16, 1), table, 1e-6)[differ].all()
    assert differ.float().mean() < 0.01
