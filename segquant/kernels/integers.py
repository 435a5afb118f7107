"""Weights as signed integers, which kernels and files of other tools multiply; or why there are none. fp8 beside them.

A weight is (code − zero) · scale. Codes less their zero point are signed integers of one bit more, so that a weight
with zero points has the same exact products as one without.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segquant.numerics.fake_quant import expand_weight_scale, weight_codes, weight_scales
from segquant.numerics.formats import QuantScheme, QuantSpec
from segquant.numerics.grids import GRIDS
from segquant.numerics.layout import Layout
from segquant.numerics.packing import pack, unpack
from segquant.numerics.weight_grid import counts_from_least


def signed_bits(spec: QuantSpec) -> int:
    """Bits of a weight's codes less their zero point."""
    return spec.bits + spec.zero_point


def why_no_integers(scheme: QuantScheme) -> str | None:
    """Why a layer has no signed integers of at most 8 bits to multiply, as the end of a sentence; None if it has."""
    weight, inputs = scheme.weight, scheme.input
    for spec in (weight, inputs):
        if spec is not None and spec.grid.kind not in ("int", "uint"):
            return f"multiplies integers, and {spec.dtype} has none"
    assert weight is not None
    if counts_from_least(weight):
        return (
            f"multiplies signed integers, and {weight.dtype} with scale_dtype {weight.scale_dtype!r} counts from a "
            f"least value; int{weight.bits} is the nearest"
        )
    if signed_bits(weight) > 8:
        return f"multiplies integers of a signed byte, which {weight.dtype} less its zero point exceeds; use int8"
    return None


def why_no_codes(scheme: QuantScheme) -> str | None:
    """Likewise, why a layer has neither signed integers nor fp8 (of the weight, with fp8 or float inputs)."""
    weight, inputs = scheme.weight, scheme.input
    assert weight is not None
    kinds = [spec.dtype for spec in (weight, inputs) if spec is not None]
    for dtype in kinds:
        if dtype != "fp8" and GRIDS[dtype].kind not in ("int", "uint"):
            return f"multiplies integers or fp8, and {dtype} is neither"
    if "fp8" not in kinds:
        return why_no_integers(scheme)
    if len(set(kinds)) > 1:
        return f"multiplies codes of one kind, and these are {kinds[0]} and {kinds[1]}"
    return None


def why_not_scales(scheme: QuantScheme) -> str | None:
    """Likewise, why a kernel that takes float32 scales from each row does not find the input's."""
    inputs = scheme.input
    if inputs is None or not inputs.dynamic or inputs.granularity == "tensor" or inputs.scale_dtype == "float32":
        return None
    return f"takes scales of inputs in float32, and these are {inputs.scale_dtype}"


def kernel_bits(spec: QuantSpec) -> int:
    """Of codes as kernels read them: 4 or 8."""
    return 4 if signed_bits(spec) <= 4 else 8


def signed_codes(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """Codes of a weight less their zero points, int8 [out, in]; see `why_no_integers`."""
    codes = weight_codes(layout, tensors)
    zero = weight_scales(layout, tensors).zero
    if zero is None:
        return codes
    wide = expand_weight_scale(zero, layout.weight_rows, layout.weight_columns).to(torch.int8)
    return codes.view(torch.int8) - wide  # of at most seven bits each


def kernel_codes(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """As kernels read them: int8 or float8_e4m3fn [out, in], or four bits two per byte, even columns in the low half.

    int8, int4 and fp8 are what the layer stores; others are made: two and three bits as four, five to seven as eight.
    """
    spec = layout.weight_spec
    if spec.dtype == "fp8":
        return tensors["codes"].view(torch.float8_e4m3fn)
    if spec.dtype in ("int8", "int4"):
        return tensors["codes"]
    codes = signed_codes(layout, tensors)
    return pack(codes, 4) if kernel_bits(spec) == 4 else codes.contiguous()


def unpack_codes(codes: Tensor, layout: Layout) -> Tensor:
    """Kernel codes, some rows of them, as int8 [rows, in]."""
    return unpack(codes, layout.in_features, kernel_bits(layout.weight_spec), signed=True)


def row_scales(layout: Layout, tensors: Mapping[str, Tensor], half: bool = False) -> Tensor:
    """Scales of a weight by row, [out, groups], contiguous; float32, or with `half` bfloat16 or float16 if kept so."""
    kept = tensors["weight_scale"]
    scale = kept if half and kept.dtype in (torch.bfloat16, torch.float16) else weight_scales(layout, tensors).scale
    if len(layout.weight_rows) != layout.out_features:
        counts = torch.tensor(layout.weight_rows, dtype=torch.int64, device=scale.device)
        scale = scale.repeat_interleave(counts, dim=0, output_size=layout.out_features)
    return scale.contiguous()
