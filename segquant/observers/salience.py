"""Spearman's-ρ-guided salience calibration of PTQ4DiT (arXiv 2405.16005), a running statistic."""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension, ties sharing their mean rank; float64, same shape."""
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to + 1).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension, float64; 0 where one side is constant.

    Args:
        a, b: [..., n], leading dimensions broadcast.
    """
    x, y = average_ranks(a), average_ranks(b)
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    spread = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    product = (x * y).sum(-1)
    return torch.where(spread > 0, product / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0.0)


class TemporalSalience:
    """Running Σ η_t s(X_t) / Σ η_t with η_t = exp(−ρ(s(X_t), s(W))), one item of a denoiser call at a time.

    The paper has one term per timestep. Here each item (an image with its timestep) is a term, which is the same
    average if every timestep has as many items, and does not ask which timestep an item came from.

    Args:
        weight_salience: largest magnitudes per input channel of the weight, [in].
    """

    def __init__(self, weight_salience: Tensor) -> None:
        self.weight_salience = weight_salience.detach()
        self._sum = torch.zeros_like(self.weight_salience, dtype=torch.float64)
        self._weight = torch.zeros((), dtype=torch.float64, device=self._sum.device)
        self.items = 0

    def update(self, items: Tensor) -> None:
        """Take in the largest magnitudes per channel of some items, [items, in]."""
        if items.shape[0] == 0:
            return
        eta = (-spearman(items, self.weight_salience)).exp()
        self._sum += eta @ items.double()
        self._weight += eta.sum()
        self.items += items.shape[0]

    @property
    def value(self) -> Tensor:
        """The calibrated salience of the input, float32 [in].

        Raises:
            ValueError: no item was taken in.
        """
        if not self.items:
            raise ValueError("the temporal salience has seen no input; call update with calibration items first")
        return (self._sum / self._weight).float()
