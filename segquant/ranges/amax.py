"""Absolute-maximum scales and round to nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from segquant.numerics import functional as F


def weight_scale(weight: Tensor, dtype: str, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """amax / code_max of every block of a weight.

    Args:
        weight: float [out, in].
        dtype: number format.
        rows, columns: block sizes, summing to out and in; (1, 1, …) rows are per-channel scales.

    Returns:
        float32 (float64 for a float64 weight), shape [len(rows), len(columns)].
    """
    amax = F.piece_max(weight.abs(), columns)
    if not (F.uniform(rows) and rows[0] == 1):
        amax = torch.stack([block.amax(0) for block in amax.split(rows)])
    return F.choose_scale(amax, dtype)
