"""SVDQuant (arXiv 2411.05007)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from segquant.errors import QuantizationError
from segquant.numerics.formats import check_choice
from segquant.numerics.layout import Layout
from segquant.numerics.transform import Transform
from segquant.numerics.weight_grid import WeightScales
from segquant.optimizers.protocol import Branch, Fitted, Optimizer, Problem, Rounded
from segquant.optimizers.scaling import STATS, SmoothQuant
from segquant.optimizers.search import Scaling
from segquant.optimizers.svd import SVDS, rank_share, truncated, weighted_low_rank
from segquant.registry import register
from segquant.transforms.low_rank import HALF, LowRank

DEFAULT_RANK = 32
FLOAT16_MAX = 6e4


@dataclass(frozen=True)
class Split:
    """One branch: weight on the grid [rows, in], its scales, up [rows, r], down [r, in]."""

    quantized: Tensor
    scale: WeightScales
    up: Tensor
    down: Tensor


@register
@dataclass(frozen=True)
class SvdQuant(SmoothQuant):
    """Smoothing, a 16-bit low-rank branch, the rest rounded.

    Args:
        rank: None is `rank_limit`, but at most the share `rank_fraction` of the layer's smaller side.
        svd: "exact", or "randomized" for large layers.
        iterations: refits of the branch to what the quantizer left.
        rank_limit: of a rank that is not given.
        rank_fraction: likewise.
    """

    rank: int | None = None
    svd: str = "exact"
    iterations: int = 0
    rank_limit: int = field(default=DEFAULT_RANK, kw_only=True)
    rank_fraction: float = field(default=1 / DEFAULT_RANK, kw_only=True)
    name: ClassVar[str] = "svd"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("svd", self.svd, SVDS)
        if (self.rank is not None and self.rank < 1) or self.iterations < 0:
            raise ValueError(f"rank={self.rank}, iterations={self.iterations}: rank is at least 1, iterations 0")
        if self.rank_limit < 1 or not 0 < self.rank_fraction <= 1:
            raise ValueError(
                f"rank_limit={self.rank_limit}, rank_fraction={self.rank_fraction}: the limit is at least 1, and the "
                "fraction lies in (0, 1]"
            )

    @property
    def needs(self) -> frozenset[str]:
        return STATS | {"gram"} if self.iterations else STATS

    def rank_of(self, in_features: int, out_features: int) -> int:
        if self.rank is not None:
            return self.rank
        share = math.floor(min(in_features, out_features) * self.rank_fraction + 1e-9)  # 1536 / 24 is 64
        return max(1, min(self.rank_limit, share))

    def scaling(self, problem: Problem) -> Scaling:
        layout = problem.layout
        share = rank_share(layout, self.rank_of(layout.in_features, layout.out_features))
        return replace(super().scaling(problem), rank_share=share)

    def without_smoothing(self) -> Optimizer | None:
        return _LowRankAlone(**{field.name: getattr(self, field.name) for field in fields(self)})

    def added(self, layout: Layout, name: str) -> tuple[Transform, ...]:
        return (LowRank((self._checked_rank(layout, name),)),)

    def round(self, branches: Iterable[Branch], problem: Problem, fitted: Fitted) -> Rounded:
        """Every branch split, the halves of all kept at one dtype."""
        ranks = self._ranks(problem, fitted)
        splits: list[Split | None] = []
        found: list[tuple[Tensor, WeightScales]] = []
        for branch, rank in zip(branches, ranks, strict=True):
            split = self._split(branch, rank, problem.seed) if rank else None
            splits.append(split)
            found.append(branch.round(branch.weight) if split is None else (split.quantized, split.scale))
        quantized, scales = [entry[0] for entry in found], [entry[1] for entry in found]
        if not any(ranks):
            return Rounded(quantized, scales)
        kept = [split for split in splits if split is not None]
        half = kept[0].up.dtype
        if any(split.up.dtype != half for split in kept):
            half = torch.bfloat16
        tensors = {
            "low_rank_down": torch.cat([split.down.to(half) for split in kept]).contiguous(),
            "low_rank_up": torch.cat([split.up.to(half).flatten() for split in kept]),
        }
        return Rounded(quantized, scales, (LowRank(ranks, str(half).removeprefix("torch.")),), tensors)

    def _checked_rank(self, layout: Layout, name: str) -> int:
        rank = self.rank_of(layout.in_features, layout.out_features)
        smaller = min(layout.in_features, layout.out_features)
        if rank > smaller:
            raise QuantizationError(
                f"{name}: rank {rank} is larger than the layer, {layout.in_features} -> {layout.out_features}; give a "
                f"rank of at most {smaller} (for this layer alone: overrides={{{name!r}: {{'rank': {smaller}}}}})"
            )
        return rank

    def _ranks(self, problem: Problem, fitted: Fitted) -> tuple[int, ...]:
        layout = problem.layout
        rank = self._checked_rank(layout, problem.name)
        if len(layout.branches) == 1:
            return (rank,)
        smooth = fitted.tensors["smooth"]
        gains: list[tuple[float, int, int]] = []
        for branch, rows in enumerate(layout.branch_slices):
            cost = layout.in_features + layout.branches[branch]
            energies = torch.linalg.svdvals((problem.weight[rows] * smooth[branch]).double()).square() / cost
            gains += [(energy, branch, cost) for energy in energies.tolist()]
        left, ranks = rank * (layout.in_features + layout.out_features), [0] * len(layout.branches)
        for _, branch, cost in sorted(gains, key=lambda gain: -gain[0]):
            if cost > left:
                break
            left -= cost
            ranks[branch] += 1
        return tuple(ranks)

    def _split(self, branch: Branch, rank: int, seed: int) -> Split:
        weight, gram = branch.weight, branch.gram
        up, down = _half(*truncated(weight, rank, self.svd, seed))
        quantized, scale = branch.round(weight - up.float() @ down.float())
        best = Split(quantized, scale, up, down)
        if not self.iterations or gram is None:
            return best
        error = _error(weight, best, gram)
        for _ in range(self.iterations):
            up, down = _half(*weighted_low_rank(weight - quantized, gram, rank))
            candidates = [Split(quantized, scale, up, down)]
            quantized, scale = branch.round(weight - up.float() @ down.float())
            candidates.append(Split(quantized, scale, up, down))
            for candidate in candidates:
                found = _error(weight, candidate, gram)
                if found < error:
                    best, error = candidate, found
        return best


@dataclass(frozen=True)
class _LowRankAlone(SvdQuant):
    """The branch without smoothing: no preset names it."""

    transforms: ClassVar[tuple[Transform, ...]] = ()

    def scaling(self, problem: Problem) -> Scaling:
        return replace(super().scaling(problem), alpha=None)

    def without_smoothing(self) -> Optimizer | None:
        return None


def _half(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    peak = max(float(up.abs().amax()), float(down.abs().amax()))
    half = HALF["float16" if peak < FLOAT16_MAX else "bfloat16"]
    return up.to(half), down.to(half)


def _error(weight: Tensor, found: Split, gram: Tensor) -> float:
    """||X(W − Q − UD)ᵀ||² up to a factor."""
    left = weight - found.quantized - found.up.float() @ found.down.float()
    return float(((left @ gram.to(left.dtype)) * left).sum(dtype=torch.float64))
