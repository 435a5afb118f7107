"""An optimizer: what is done to a layer before its weight is rounded."""

from dataclasses import dataclass
from typing import ClassVar

import torch

import segquant
from segquant.optimizers import Fitted, Problem
from segquant.transforms.smoothing import Smoothing


@segquant.register
@dataclass(frozen=True)
class Root(segquant.Optimizer):
    """Divides every input channel by the root of its largest magnitude, and multiplies the weight by it."""

    name: ClassVar[str] = "root"
    needs: ClassVar[frozenset[str]] = frozenset({"stats"})
    transforms: ClassVar[tuple[segquant.Transform, ...]] = (Smoothing(),)

    def fit(self, problem: Problem) -> Fitted:
        assert problem.stats is not None  # asked for by `needs`
        largest = torch.maximum(problem.stats.positive, problem.stats.negative)
        vector = largest.clamp_min(1e-3).sqrt().expand(len(problem.layout.branches), -1)
        return Fitted(self.transforms, {"smooth": vector.contiguous()})
