"""Runs: consecutive columns of a layer with one scale of the weight and one of the input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from segquant.kernels.integers import signed_bits, unpack_codes
from segquant.numerics.layout import Layout


class Run(NamedTuple):
    """Columns `start` … `stop`, whose scales are those of a weight's `group` and an input's `piece`.

    Args:
        dual: whether the signs of the piece are treated apart, 0 or 1.
    """

    start: int
    stop: int
    group: int
    piece: int
    dual: int


def runs_of(pieces: Sequence[int], dual: Sequence[int], groups: Sequence[int]) -> tuple[Run, ...]:
    """Of input pieces, whether their signs are treated apart, and columns per weight scale."""
    piece_stops, group_stops = list(accumulate(pieces)), list(accumulate(groups))
    found: list[Run] = []
    start = piece = group = 0
    for stop in sorted({*piece_stops, *group_stops}):
        found.append(Run(start, stop, group, piece, int(dual[piece])))
        piece, group, start = piece + (stop == piece_stops[piece]), group + (stop == group_stops[group]), stop
    return tuple(found)


def layout_runs(layout: Layout) -> tuple[Run, ...]:
    """Of a layer whose input is quantized."""
    grid = layout.input_grid
    assert grid is not None
    return runs_of(grid.pieces, tuple(int(flag) for flag in grid.dual), layout.weight_columns)


def code_sums(layout: Layout, codes: Tensor) -> Tensor | None:
    """Sums of a weight's codes over each run, [runs, out], in int16 where every sum fits; None where none is needed.

    An input's codes with a zero point, 0 … 255, are multiplied less 128: x = (code − zero) · scale, so that the product
    is that of code − 128 plus (128 − zero) times the sum. Of fewer than 8 bits, code − zero fits in int8.

    Args:
        codes: of the weight, as `kernel_codes`.
    """
    grid = layout.input_grid
    if grid is None or not grid.zero_point or grid.spec.bits < 8:
        return None
    codes, bits = unpack_codes(codes, layout), signed_bits(layout.weight_spec)
    runs = layout_runs(layout)
    widest = max(run.stop - run.start for run in runs)
    kind = torch.int16 if widest << (bits - 1) < 2**15 else torch.int32
    return torch.stack([codes[:, run.start : run.stop].sum(1, dtype=torch.int32) for run in runs]).to(kind)
