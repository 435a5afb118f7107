"""AdaRound: learn whether each weight is rounded down or up (Nagel et al. 2020, arXiv 2004.10568).

A weight is lower + gap · h(V), h(V) = clip(σ(V)(ζ − γ) + γ, 0, 1) (eq. 23). V minimizes the reconstruction error plus λ
· mean(1 − |2h − 1|^β) (eq. 24) while β falls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segquant.calibrators.reconstruction import Reconstruction
from segquant.numerics import functional as F
from segquant.numerics.grids import GRIDS

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) in [0, 1], eq. 23."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp_(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """V with h(V) = h; finite at both ends."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def regulariser(h: Tensor, beta: float) -> Tensor:
    """1 − |2h − 1|^β, entry by entry (eq. 24)."""
    return 1 - (2 * h - 1).abs().pow(beta)


def grid_cell(values: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """The lower neighbour on the grid, and the distance to the next. Values beyond the grid get its outermost cell."""
    return GRIDS[dtype].cell(values)


class Rounding:
    """The rounding of one weight [out, in] while it is learnt.

    Attributes:
        v: the learnt V.
        lower: lower end of every cell, in units of the weight.
        gap: width of the cells.
    """

    def __init__(self, weight: Tensor, scale: Tensor, dtype: str, offset: Tensor | None = None) -> None:
        weight = weight if weight.dtype == torch.float64 else weight.float()
        ratio = (weight if offset is None else weight - offset) / scale
        lower, gap = grid_cell(ratio, dtype)
        self.v = inverse_rectified_sigmoid(((ratio - lower) / gap).clamp_(0, 1))
        self.lower, self.gap = lower.mul_(scale), gap.mul_(scale)
        if offset is not None:
            self.lower.add_(offset)
        self._h = torch.empty(0, dtype=torch.float32, device="cpu")

    def soft(self) -> Tensor:
        """lower + gap · h(V): a fresh leaf that gradients flow to."""
        self._h = rectified_sigmoid(self.v)
        return torch.addcmul(self.lower, self.gap, self._h).requires_grad_()

    def descend(self, gradient: Tensor, strength: float, beta: float) -> None:
        """Set V's gradient: that of the loss at the last `soft`, plus that of strength · Σ(1 − |2h − 1|^β)."""
        found, h = gradient * self.gap, self._h
        centred = 2 * h - 1
        found.addcmul_(centred.sign(), centred.abs_().pow_(beta - 1), value=-2 * strength * beta)
        inside = (h > 0) & (h < 1)
        # σ(1 − σ)(ζ − γ) with σ taken back from h; outside the clip the slope is zero
        sigma = (h - GAMMA).div_(ZETA - GAMMA)
        self.v.grad = found.mul_(sigma.addcmul_(sigma, sigma, value=-1).mul_(ZETA - GAMMA)).mul_(inside)

    def hard(self) -> Tensor:
        """The weight on its grid: up where h ≥ 1/2."""
        return torch.where(self.v >= 0, self.lower + self.gap, self.lower)


def learn_(roundings: Sequence[Rounding], loss: Callable[[list[Tensor]], Tensor], settings: Reconstruction) -> None:
    """Adam on V of all roundings together; `loss` is about 1 for rounding to nearest."""
    optimiser = torch.optim.Adam([rounding.v for rounding in roundings], lr=settings.lr, fused=True)
    strength = settings.strength / sum(rounding.v.numel() for rounding in roundings)
    for step in range(settings.steps):
        optimiser.param_groups[0]["lr"] = settings.rate(step)
        with torch.enable_grad():
            weights = [rounding.soft() for rounding in roundings]
            gradients = torch.autograd.grad(loss(weights), weights, materialize_grads=True)
        for rounding, gradient in zip(roundings, gradients, strict=True):
            rounding.descend(gradient, strength, settings.beta(step))
        optimiser.step()


def adaround(
    rows: Tensor,
    target: Tensor,
    weight: Tensor,
    scale: Tensor,
    dtype: str,
    settings: Reconstruction | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """One weight [out, in] rounded to the grid of `scale` so that ||X Ŵᵀ − Y|| is small; returned dequantized.

    Args:
        rows: X [n, in], quantized if the layer's input will be.
        target: Y [n, out], the float layer's output without its bias.
        settings: `batch` counts rows of X; `held_out`, `rows` and `memory_limit` do not apply.
    """
    settings = settings or Reconstruction()
    rounding = Rounding(weight, scale, dtype)
    rows, target = rows.to(rounding.v.dtype), target.to(rounding.v.dtype)
    nearest = F.fake_quantize(weight, scale, dtype).to(rounding.v.dtype)
    unit = (rows @ nearest.T - target).square().mean().clamp_min(torch.finfo(rows.dtype).tiny)
    generator = torch.Generator().manual_seed(seed)

    def loss(weights: list[Tensor]) -> Tensor:
        size = (min(settings.batch, len(rows)),)
        drawn = torch.randint(len(rows), size, generator=generator, dtype=torch.int64, device="cpu").to(rows.device)
        return (rows[drawn] @ weights[0].T - target[drawn]).square().mean() / unit

    learn_([rounding], loss, settings)
    return rounding.hard()
