"""SVDQuant's 16-bit low-rank branch (arXiv 2411.05007, section 4): W = U D + R, R is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.checks import check_fields
from segquant.numerics.functional import computed
from segquant.numerics.transform import Buffers, Place, Transform
from segquant.registry import register

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@register
@dataclass(frozen=True)
class LowRank(Transform):
    """X unchanged, W less U D; X Dᵀ Uᵀ beside the quantized product.

    Buffers `low_rank_down`: D of all branches, [sum of ranks, in]; `low_rank_up`: U of all, flat.

    Args:
        ranks: per branch, 0 without.
        half: the factors' dtype, "float16" or "bfloat16".
    """

    ranks: tuple[int, ...]
    half: str = "float16"
    name: ClassVar[str] = "low_rank"

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.ranks, default=0) < 0:
            raise ValueError(f"ranks={self.ranks} must not be negative")
        if self.half not in HALF:
            raise ValueError(f"low-rank factors are kept as {' or '.join(HALF)}, not {self.half!r}")

    def buffers(self, place: Place) -> Buffers:
        if len(self.ranks) != len(place.branches):
            raise ValueError(f"ranks has {len(self.ranks)} entries for {len(place.branches)} branches")
        half = HALF[self.half]
        flat = sum(size * rank for size, rank in zip(place.branches, self.ranks, strict=True))
        return {"low_rank_down": ((sum(self.ranks), place.in_features), half), "low_rank_up": ((flat,), half)}

    def weight(self, weight: Tensor, place: Place) -> Tensor:
        if not self.ranks[place.branch]:
            return weight
        down, up = self.factors(place)
        return weight - up @ down

    def undo(self, weight: Tensor, place: Place) -> Tensor:
        if not self.ranks[place.branch]:
            return weight
        down, up = self.factors(place)
        return weight + up @ down

    def extremes(self, positive: Tensor, negative: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        return positive, negative

    def beside(self, x: Tensor, place: Place) -> Tensor | None:
        if not self.ranks[place.branch]:
            return None
        down, up = self.factors(place)
        return (x @ down.T) @ up.T

    def operations(self, place: Place) -> float:
        pairs = zip(self.ranks, place.branches, strict=True)
        return float(sum(rank * (place.in_features + size) for rank, size in pairs))

    def factors(self, place: Place) -> tuple[Tensor, Tensor]:
        """Float32 (down [rank, in], up [rows, rank]) of one branch; float64 stays."""
        before = self.ranks[: place.branch]
        start, rank, size = sum(before), self.ranks[place.branch], place.branches[place.branch]
        offset = sum(r * o for r, o in zip(before, place.branches[: place.branch], strict=True))
        down = place.tensors["low_rank_down"][start : start + rank]
        up = place.tensors["low_rank_up"][offset : offset + size * rank].view(size, rank)
        return computed(down), computed(up)
