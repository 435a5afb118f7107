"""Smoothing of a whole layer: every segment with its own α, judged on the layer as it will run."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from segquant import functional as F
from segquant.calibrators.amax import weight_scale
from segquant.kernels.reference import expand_weight_scale, input_scales, quantize_input
from segquant.layout import Layout, group_pieces, slices
from segquant.optimizers.smooth import MARGINS, Choice, Layer, search_alpha, smoothing
from segquant.optimizers.svd import random_low_rank, rank_share
from segquant.spec import SEARCH, Method
from segquant.stats import HeldOut, InputStats

log = logging.getLogger(__name__)

FEW_ROWS, FEW_CALLS = 1024, 128
"""Below either the range that was seen says little about fresh rows: margins are tried."""
HELD_CALLS = 32
"""Calls to hold out, over several splits if need be, where static scales can clip what a call brings."""


def smooth_layer(weight: Tensor, layout: Layout, method: Method, stats: InputStats) -> tuple[Tensor, Tensor]:
    """Smoothing vectors [branches, in] and margins of static scales [branches, columns].

    Every output and input segment has its own α.
    """
    amax = torch.maximum(stats.positive, stats.negative)
    smooth = torch.ones(len(layout.branches), layout.in_features, device=weight.device)
    margin = torch.ones(len(layout.branches), len(layout.columns), device=weight.device)
    static = layout.scheme.static_input
    splits = stats.held_out(calls=HELD_CALLS if static else 1) if method.alpha == SEARCH else []
    few = stats.rows < FEW_ROWS or stats.calls < FEW_CALLS
    margins = MARGINS if static and few else (1.0,)
    for branch, rows in enumerate(layout.branch_slices):
        for index, columns in enumerate(slices(layout.columns)):
            block = weight[rows, columns]
            if method.alpha == SEARCH:
                pieces = [
                    HeldOut(s.positive[columns], s.negative[columns], s.rows[:, columns], s.calls) for s in splits
                ]
                choice = search_alpha(block, pieces, BlockSimulation(layout, method, branch, index), margins=margins)
                log.debug("%s branch %d piece %d: %s", stats.name, branch, index, choice)
            else:
                choice = Choice(float(method.alpha))
            margin[branch, index] = choice.margin
            if choice.alpha is not None:
                smooth[branch, columns] = smoothing(amax[columns], block.abs().amax(0), choice.alpha)
    return smooth, margin


class BlockSimulation:
    """One block (output branch × input segment) of the quantized layer, rounded to nearest."""

    def __init__(self, layout: Layout, method: Method, branch: int, index: int) -> None:
        rows, width = layout.branches[branch], layout.columns[index]
        self.weight_spec, self.input_spec, self.seed = layout.weight_spec, layout.scheme.input, method.seed
        self.dual = layout.dual[index]
        cut = layout.rows if len(layout.branches) == 1 else (rows,)
        self.rows = cut if self.weight_spec.granularity == "tensor" else (1,) * rows
        group = self.weight_spec.group_size
        self.columns = group_pieces((width,), group) if group else (width,)
        group = self.input_spec.group_size if self.input_spec else None
        self.pieces = group_pieces((width,), group) if group else (width,)
        rank = method.rank_of(layout.in_features, layout.out_features)
        share = rank_share(layout, rank) * width / layout.in_features
        self.rank = max(1, round(share)) if method.optimizer == "svd" else 0

    def __call__(self, weight: Tensor) -> Layer:
        residual, factors = weight, None
        if self.rank:
            up, down = random_low_rank(weight, self.rank, self.seed)
            residual, factors = weight - up @ down, (up, down)
        scale = weight_scale(residual, self.weight_spec.dtype, self.rows, self.columns)
        wide = expand_weight_scale(scale, self.rows, self.columns)
        rounded = F.fake_quantize(residual, wide, self.weight_spec.dtype).T

        def layer(split: HeldOut) -> Tensor:
            out = self._input(split) @ rounded
            return out if factors is None else out + (split.rows @ factors[1].T) @ factors[0].T

        return layer

    def _input(self, split: HeldOut) -> Tensor:
        spec = self.input_spec
        if spec is None:
            return split.rows
        dual, static = (self.dual,) * len(self.pieces), None
        if not spec.dynamic:
            static = input_scales(
                F.piece_max(split.positive, self.pieces), F.piece_max(split.negative, self.pieces), dual, spec
            )
        return quantize_input(split.rows, self.pieces, dual, spec, static)
