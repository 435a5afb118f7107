"""What is left of a weight after smoothing: split off the low-rank branch, calibrate the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.calibrators.gptq import Factor, round_with
from segquant.errors import QuantizationError
from segquant.kernels.reference import expand_weight_scale
from segquant.method.spec import Method
from segquant.numerics import functional as F
from segquant.numerics.layout import HALF, Layout
from segquant.optimizers.svd import truncated, weighted_low_rank
from segquant.ranges.pick import pick_weight_scale

FLOAT16_MAX = 6e4


@dataclass(frozen=True)
class SolvedBranch:
    """One branch, calibrated: weight on the grid [rows, in], its scales, and low-rank factors or None."""

    quantized: Tensor
    scale: Tensor
    up: Tensor | None = None
    down: Tensor | None = None


def choose_ranks(
    weight: Tensor, smooth: Tensor | None, layout: Layout, method: Method, name: str = "linear"
) -> tuple[int, ...]:
    """Rank of each branch: the budget of one rank-r branch on the whole layer goes where the energy is."""
    if method.optimizer != "svd" or smooth is None:
        return (0,) * len(layout.branches)
    rank = method.rank_of(layout.in_features, layout.out_features)
    smaller = min(layout.in_features, layout.out_features)
    if rank > smaller:
        raise QuantizationError(
            f"{name}: rank {rank} is larger than the layer, {layout.in_features} -> {layout.out_features}; give a rank "
            f"of at most {smaller} (for this layer alone: overrides={{{name!r}: {{'rank': {smaller}}}}})"
        )
    if len(layout.branches) == 1:
        return (rank,)
    gains: list[tuple[float, int, int]] = []
    for branch, rows in enumerate(layout.branch_slices):
        cost = layout.in_features + layout.branches[branch]
        energies = torch.linalg.svdvals((weight[rows] * smooth[branch]).double()).square() / cost
        gains += [(energy, branch, cost) for energy in energies.tolist()]
    left, ranks = rank * (layout.in_features + layout.out_features), [0] * len(layout.branches)
    for _, branch, cost in sorted(gains, key=lambda gain: -gain[0]):
        if cost > left:
            break
        left -= cost
        ranks[branch] += 1
    return tuple(ranks)


def calibrate_branch(
    weight: Tensor,
    hessian: Tensor | None,
    layout: Layout,
    rank: int,
    method: Method,
    importance: Tensor | None = None,
    factor: Factor | None = None,
) -> SolvedBranch:
    """Calibrate one branch; with a low-rank branch, optionally refit it to what the quantizer left.

    Args:
        weight: float32 [rows, in], transformed as the input is.
        hessian: Gram matrix of the transformed input, where the method needs it.
        layout: of this branch alone.
        rank: of its low-rank branch, 0 without.
        method: what to do.
        importance: mean square of the transformed input [in], for "mse" ranges.
        factor: of the hessian, where the calibrator is GPTQ.
    """
    if not rank:
        return SolvedBranch(*_calibrate(weight, factor, layout, method, importance))
    up, down = _half(*truncated(weight, rank, method.svd, method.seed))
    quantized, scale = _calibrate(weight - up.float() @ down.float(), factor, layout, method, importance)
    best = SolvedBranch(quantized, scale, up, down)
    if not method.iterations or hessian is None:
        return best
    error = _error(weight, best, hessian)
    for _ in range(method.iterations):
        up, down = _half(*weighted_low_rank(weight - quantized, hessian, rank))
        candidates = [SolvedBranch(quantized, scale, up, down)]
        quantized, scale = _calibrate(weight - up.float() @ down.float(), factor, layout, method, importance)
        candidates.append(SolvedBranch(quantized, scale, up, down))
        for candidate in candidates:
            found = _error(weight, candidate, hessian)
            if found < error:
                best, error = candidate, found
    return best


def _half(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    peak = max(float(up.abs().amax()), float(down.abs().amax()))
    half = HALF["float16" if peak < FLOAT16_MAX else "bfloat16"]
    return up.to(half), down.to(half)


def _error(weight: Tensor, found: SolvedBranch, hessian: Tensor) -> float:
    """||X(W − Q − UD)ᵀ||² up to a factor."""
    assert found.up is not None and found.down is not None
    left = weight - found.quantized - found.up.float() @ found.down.float()
    return float(((left @ hessian.to(left.dtype)) * left).sum(dtype=torch.float64))


def _calibrate(
    weight: Tensor, factor: Factor | None, layout: Layout, method: Method, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weight on its grid (by GPTQ where there is a factor), and the scales [rows, columns] of that grid."""
    dtype = layout.weight_spec.dtype
    scale = pick_weight_scale(weight, method, dtype, layout.weight_rows, layout.weight_columns, importance)
    wide = expand_weight_scale(scale, layout.weight_rows, layout.weight_columns)
    if factor is not None:
        return round_with(weight, factor, wide, dtype), scale
    return F.fake_quantize(weight, wide, dtype), scale
