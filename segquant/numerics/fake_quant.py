"""Weights on their grids: scales spread over a weight, codes as a layer stores them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.numerics.layout import Layout
from segquant.numerics.packing import pack, unpack
from segquant.numerics.weight_grid import WeightScales, read_scales


def expand_weight_scale(scale: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """Scales [len(rows), len(columns)] broadcastable to [out, in]."""
    wide = F.expand_pieces(scale, columns)
    if F.uniform(rows) and rows[0] == 1 or len(rows) == 1:
        return wide
    counts = torch.tensor(rows, dtype=torch.int64, device=scale.device)
    return wide.repeat_interleave(counts, dim=0, output_size=sum(rows))


def weight_scales(layout: Layout, tensors: Mapping[str, Tensor]) -> WeightScales:
    """A layer's scales, whatever they are kept as."""
    branches = layout.branches if len(layout.weight_rows) == layout.out_features else _one_row_each(layout)
    return read_scales(layout.weight_spec, tensors, len(layout.weight_columns), branches)


def _one_row_each(layout: Layout) -> tuple[int, ...]:
    rows, count = len(layout.weight_rows), len(layout.branches)
    return (rows,) if count == 1 else (1,) * count


def weight_codes(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """A layer's codes [out, in], one in a byte: int8, or uint8 of dtypes that are not signed integers."""
    spec = layout.weight_spec
    return unpack(tensors["codes"], layout.in_features, spec.bits, spec.grid.kind == "int")


def dequantize_weight(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """The quantized weight, float32 [out, in], in each branch's transformed space."""
    return on_grid(
        layout.weight_spec.grid.decode(weight_codes(layout, tensors)), weight_scales(layout, tensors), layout
    )


def on_grid(values: Tensor, scales: WeightScales, layout: Layout) -> Tensor:
    """Values of codes [out, in] in units of the weight; `values` may be written to."""

    def wide(blocks: Tensor) -> Tensor:
        return expand_weight_scale(blocks, layout.weight_rows, layout.weight_columns)

    if scales.zero is not None:
        values = values - wide(scales.zero)
    values = values * wide(scales.scale)
    return values if scales.least is None else values.add_(wide(scales.least))


def round_weight(
    weight: Tensor, scales: WeightScales, rows: tuple[int, ...], columns: tuple[int, ...], dtype: str
) -> Tensor:
    """A weight [out, in] rounded to nearest, dequantized."""
    scale = expand_weight_scale(scales.scale, rows, columns)
    if scales.offset is None:
        return F.fake_quantize(weight, scale, dtype)
    offset = expand_weight_scale(scales.offset, rows, columns)
    return F.fake_quantize(weight - offset, scale, dtype).add_(offset)


def store_codes(codes: Tensor, spec: QuantSpec) -> Tensor:
    """Codes as a layer keeps them: int8 as it is, others as bytes without gaps."""
    return codes if spec.dtype == "int8" else pack(codes.view(torch.uint8), spec.bits)
