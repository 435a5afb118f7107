"""Fake quantization in float32 on the formats' exact grids, any device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.numerics.layout import Layout


def input_scales(positive: Tensor, negative: Tensor, dual: tuple[bool, ...], spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scales for x ≥ 0 and below, per input piece, from its largest value and the smallest's magnitude [..., pieces].

    Args:
        dual: pieces with a scale per sign; others get one scale twice.
    """
    plain = F.choose_scale(torch.maximum(positive, negative), spec.dtype)
    if not any(dual):
        return plain, plain
    above, below = F.choose_dual_scale(positive, negative, spec.dtype)
    if all(dual):
        return above, below
    mask = torch.tensor(dual, dtype=torch.bool, device=plain.device)
    return torch.where(mask, above, plain), torch.where(mask, below, plain)


def dynamic_scales(
    x: Tensor, columns: tuple[int, ...], dual: tuple[bool, ...], spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Scales from the input, per token (or tensor) and piece, [..., pieces]."""
    if any(dual):
        positive = F.piece_max(x, columns).clamp_min_(0)
        negative = F.piece_max(-x, columns).clamp_min_(0)
    else:
        positive = negative = F.piece_max(x.abs(), columns)
    if spec.granularity == "tensor":
        positive, negative = _over_rows(positive), _over_rows(negative)
    return input_scales(positive, negative, dual, spec)


def _over_rows(values: Tensor) -> Tensor:
    """The maximum over all dimensions but the last, [1, …, 1, pieces]; 0 without rows."""
    lead = tuple(range(values.dim() - 1))
    if not values.numel():
        return values.new_zeros(*(1 for _ in lead), values.shape[-1])
    return values.amax(lead, keepdim=True) if lead else values  # amax takes no dimensions for all of them


def quantize_input(
    x: Tensor,
    columns: tuple[int, ...],
    dual: tuple[bool, ...],
    spec: QuantSpec,
    static: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Fake quantization of [..., in]; `static`: scales [pieces] for x ≥ 0 and below, None: from x."""
    above, below = dynamic_scales(x, columns, dual, spec) if static is None else static
    scale = F.expand_pieces(above, columns)
    if any(dual):
        return F.dual_fake_quantize(x, scale, F.expand_pieces(below, columns), spec.dtype)
    return F.fake_quantize(x, scale, spec.dtype)


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
