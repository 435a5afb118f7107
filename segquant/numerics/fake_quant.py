"""Weights on their grids: scales spread over a weight, codes as a layer stores them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.layout import Layout


def expand_weight_scale(scale: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """Scales [len(rows), len(columns)] broadcastable to [out, in]."""
    wide = F.expand_pieces(scale, columns)
    if F.uniform(rows) and rows[0] == 1 or len(rows) == 1:
        return wide
    counts = torch.tensor(rows, dtype=torch.int64, device=scale.device)
    return wide.repeat_interleave(counts, dim=0, output_size=sum(rows))


def dequantize_weight(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """The quantized weight, float32 [out, in], in each branch's transformed space."""
    codes, dtype = tensors["codes"], layout.weight_spec.dtype
    if dtype == "int4":
        codes = F.unpack_int4(codes, layout.in_features)
    elif dtype == "fp8":
        codes = codes.view(torch.float8_e4m3fn)
    scale = expand_weight_scale(tensors["weight_scale"], layout.weight_rows, layout.weight_columns)
    return F.dequantize(codes, scale)


def store_codes(codes: Tensor, dtype: str) -> Tensor:
    """Codes as a layer keeps them: int4 two per byte, fp8 as uint8."""
    if dtype == "int4":
        return F.pack_int4(codes)
    return codes.view(torch.uint8) if dtype == "fp8" else codes
