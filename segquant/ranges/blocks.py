"""Apply a function to every block of a weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.numerics.scales import without_neighbours

CACHE = 1 << 16
"""Numbers that a CPU works on at a time where a scale is searched for: six times faster than from main memory."""


def map_blocks(
    pick: Callable[..., Tensor], tensors: tuple[Tensor, ...], rows: tuple[int, ...], columns: tuple[int, ...]
) -> Tensor:
    """`pick`, from blocks [..., numbers] of tensors [out, in] to [...], of every block: [len(rows), len(columns)]."""
    if not F.uniform(rows):
        cuts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
        return torch.cat([map_blocks(pick, cut, (size,), columns) for cut, size in zip(cuts, rows, strict=True)])
    if not F.uniform(columns):
        cuts = zip(*(tensor.split(columns, 1) for tensor in tensors), strict=True)
        parts = [map_blocks(pick, cut, rows, (size,)) for cut, size in zip(cuts, columns, strict=True)]
        return torch.cat(parts, dim=1)
    some = max(1, CACHE // sum(columns))
    if rows[0] == 1 and len(rows) > some and tensors[0].device.type == "cpu":
        cuts = zip(*(tensor.split(some) for tensor in tensors), strict=True)
        return torch.cat([map_blocks(pick, cut, (1,) * len(cut[0]), columns) for cut in cuts])
    shape = (len(rows), rows[0], len(columns), columns[0])
    return pick(*(tensor.reshape(shape).transpose(1, 2).flatten(2) for tensor in tensors))


def block_max(values: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """The largest of every block of [out, in]: [len(rows), len(columns)]."""
    found = F.piece_max(values, columns)
    if F.uniform(rows) and rows[0] == 1:
        return found
    return torch.stack([block.amax(0) for block in found.split(rows)])


def widest_scale(above: Tensor, below: Tensor, spec: QuantSpec) -> Tensor:
    """The scale that reaches all of a block, from its largest and negated least value, of any shape."""
    if spec.scale_dtype == "q0":
        extreme = torch.where(above > below, above, -below) / F.code_min(spec.dtype)
        return torch.where(extreme != 0, extreme, torch.ones_like(extreme))
    return F.choose_scale(torch.maximum(above, below), spec.dtype, without_neighbours(spec.scale_dtype))
