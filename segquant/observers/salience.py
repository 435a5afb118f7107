"""Salience calibration of PTQ4DiT (arXiv 2405.16005)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension, ties averaged; float64."""
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to + 1).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of [..., n], float64; 0 where a side is constant."""
    x, y = average_ranks(a), average_ranks(b)
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    spread = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    product = (x * y).sum(-1)
    return torch.where(spread > 0, product / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0.0)


class TemporalSalience:
    """Running Σ η_t s(X_t) / Σ η_t, η_t = exp(−ρ(s(X_t), s(W))); a term per item, in the paper per timestep.

    Args:
        weight_salience: largest magnitude per input channel, [in].
    """

    def __init__(self, weight_salience: Tensor) -> None:
        self.weight_salience = weight_salience.detach()
        self._sum = torch.zeros_like(self.weight_salience, dtype=torch.float64)
        self._weight = torch.zeros((), dtype=torch.float64, device=self._sum.device)
        self.items = 0

    def update(self, items: Tensor) -> None:
        """Take in items' channel peaks [items, in]."""
        if items.shape[0] == 0:
            return
        eta = (-spearman(items, self.weight_salience)).exp()
        self._sum += eta @ items.double()
        self._weight += eta.sum()
        self.items += items.shape[0]

    def state(self) -> tuple[dict[str, Tensor], int]:
        """What `restore` takes."""
        return {"sum": self._sum, "weight": self._weight}, self.items

    def restore(self, tensors: Mapping[str, Tensor], items: int) -> None:
        self._sum, self._weight = (tensors[key].to(self._sum.device) for key in ("sum", "weight"))
        self.items = items

    @property
    def value(self) -> Tensor:
        """The salience, float32 [in].

        Raises:
            ValueError: no item yet.
        """
        if not self.items:
            raise ValueError("the temporal salience has seen no input; call update with calibration items first")
        return (self._sum / self._weight).float()
