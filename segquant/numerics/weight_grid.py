"""The grid of a weight: scales of its blocks as they are kept, and what codes count from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.numerics.packing import pack, packed_width, unpack
from segquant.numerics.scales import K_BITS, Shapes, scales_named, without_neighbours

SCALE, ZERO, LEAST = "weight_scale", "weight_zero", "weight_min"


@dataclass(frozen=True)
class WeightScales:
    """Of a weight's blocks, [rows, columns] each, on the grid on which they are kept.

    A weight is code · scale, (code − zero) · scale or code · scale + least.

    Attributes:
        scale: float32.
        zero: the code of 0, float32.
        least: the value of code 0, float32.
        stored: a layer's buffers.
    """

    scale: Tensor
    zero: Tensor | None = None
    least: Tensor | None = None
    stored: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def offset(self) -> Tensor | None:
        """What is taken off a weight before it is divided by the scale; None: nothing."""
        return self.least if self.zero is None else -self.zero * self.scale


def scale_buffers(spec: QuantSpec, rows: int, columns: int, branches: int) -> Shapes:
    """Shape and dtype of what `WeightScales.stored` holds, by name."""
    kept = scales_named(spec.scale_dtype, spec.group_size, not spec.zero_point)
    found = kept.shapes(SCALE, rows, columns, branches)
    if not spec.zero_point:
        return found
    if counts_from_least(spec):
        return found | kept.shapes(LEAST, rows, columns, branches)
    return found | {ZERO: ((rows, packed_width(columns, spec.bits)), torch.uint8)}


def counts_from_least(spec: QuantSpec) -> bool:
    """Whether code 0 is a value that is kept, rather than zero being a code (GGUF's q4_1, q4_k …)."""
    return spec.zero_point and (spec.scale_dtype == "q1" or spec.scale_dtype in K_BITS)


def symmetric_scales(spec: QuantSpec, scale: Tensor, used: Tensor) -> WeightScales:
    """From scales [rows, columns], positive but for "q0"; those not `used`, of blocks of zeros, are free.

    Raises:
        QuantizationError: a scale is beyond its dtype.
    """
    if spec.scale_dtype == "float32":
        return WeightScales(scale, stored={SCALE: scale})
    kept = scales_named(spec.scale_dtype, spec.group_size, signed=True)
    stored = kept.store(SCALE, _where_used(scale, used).float())
    return WeightScales(_read(spec, stored, SCALE, scale), stored=stored)


def offset_scales(spec: QuantSpec, above: Tensor, below: Tensor) -> WeightScales:
    """From the largest and the negated least value of every block [rows, columns].

    Raises:
        QuantizationError: a scale is beyond its dtype.
    """
    if not counts_from_least(spec):
        return _zero_scales(spec, above.clamp_min(0), below.clamp_min(0))
    if spec.scale_dtype in K_BITS:  # whose least values are at most zero
        below = below.clamp_min(0)
    kept = scales_named(spec.scale_dtype, spec.group_size, signed=False)
    width = (above + below).clamp(0, torch.finfo(above.dtype).max)
    scale = F.choose_scale(width, spec.dtype).float()
    stored = kept.store(SCALE, _where_used(scale, width > 0))
    if spec.scale_dtype in K_BITS:
        stored |= kept.store(LEAST, below.float(), zeros=True)
    else:
        stored |= kept.store(LEAST, -below.float(), zeros=True)
    least = _read(spec, stored, LEAST, scale)
    return WeightScales(_read(spec, stored, SCALE, scale), None, _signed(spec, least), stored)


def _zero_scales(spec: QuantSpec, above: Tensor, below: Tensor) -> WeightScales:
    kept = scales_named(spec.scale_dtype, spec.group_size, signed=False)
    scale, _ = F.choose_zero_point(above, below, spec.dtype, without_neighbours(spec.scale_dtype))
    if spec.scale_dtype != "float32":
        stored = kept.store(SCALE, _where_used(scale, above + below > 0).float())
        scale = _read(spec, stored, SCALE, scale)
    else:
        stored = {SCALE: scale}
    zero = (below / scale).round_().clamp_(0, F.code_max(spec.dtype))
    return WeightScales(scale, zero, None, {**stored, ZERO: pack(zero.to(torch.uint8), spec.bits)})


def read_scales(
    spec: QuantSpec, buffers: Mapping[str, Tensor], columns: int, branches: tuple[int, ...]
) -> WeightScales:
    """As they were when stored, from a layer's buffers.

    Args:
        columns: blocks along a row.
        branches: rows of blocks in each branch.
    """
    kept = scales_named(spec.scale_dtype, spec.group_size, not spec.zero_point)
    scale = kept.read(SCALE, buffers, columns, branches)
    if not spec.zero_point:
        return WeightScales(scale)
    if counts_from_least(spec):
        return WeightScales(scale, None, _signed(spec, kept.read(LEAST, buffers, columns, branches)))
    return WeightScales(scale, unpack(buffers[ZERO], columns, spec.bits, signed=False).float())


def _read(spec: QuantSpec, stored: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    kept = scales_named(spec.scale_dtype, spec.group_size, not spec.zero_point)
    return kept.read(name, stored, like.shape[-1], (like.shape[0],)).to(like.dtype)


def _signed(spec: QuantSpec, least: Tensor) -> Tensor:
    """k formats keep magnitudes of least values."""
    return -least if spec.scale_dtype in K_BITS else least


def _where_used(scale: Tensor, used: Tensor) -> Tensor:
    """Scales of blocks of zeros set to the least of the others, which they then do not outdo."""
    if bool(used.all()) or not bool(used.any()):
        return scale
    least = torch.where(used, scale.abs(), torch.full_like(scale, torch.inf)).amin()
    return torch.where(used, scale, least)
