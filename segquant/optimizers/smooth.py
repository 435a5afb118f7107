"""SmoothQuant (arXiv 2211.10438, equation 4): divide input channel j by s_j, multiply weight column j by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segquant.observe import HeldOut

ALPHAS: tuple[float, ...] = tuple(step / 10 for step in range(11))
DEFAULT_ALPHA = 0.5
FLOOR = 1e-4
"""Ranges below this share of the mean range count as that much: a channel that calibration hardly saw, or a
dead weight column, must not get a scale that blows up on fresh inputs."""

Simulate = Callable[[Tensor, HeldOut], Tensor]
"""Output [n, out] of the quantized layer: smoothed weight [out, in] and a split whose ranges and rows are smoothed."""


def smoothing(input_amax: Tensor, weight_amax: Tensor, alpha: float) -> Tensor:
    """s_j = amax(X_j)^α / amax(W_j)^(1−α), with geometric mean 1.

    The common factor is free (every scale follows it), and mean 1 keeps smoothed values where 16 bits are safe.

    Args:
        input_amax, weight_amax: largest magnitudes per input channel, float [in].
        alpha: migration strength in [0, 1].

    Returns:
        positive float32 [in]; all ones where one of the ranges is entirely zero.
    """
    if not bool((input_amax > 0).any()) or not bool((weight_amax > 0).any()):
        return torch.ones_like(input_amax, dtype=torch.float32)
    logs = alpha * _log_range(input_amax) - (1 - alpha) * _log_range(weight_amax)
    return (logs - logs.mean()).exp().float()


def _log_range(amax: Tensor) -> Tensor:
    values = amax.double()
    return values.clamp_min(FLOOR * float(values.mean())).log()


def smooth_split(split: HeldOut, scale: Tensor) -> HeldOut:
    """A split in the smoothed space: amax(X / s) = amax(X) / s, both signs likewise."""
    return HeldOut(split.positive / scale, split.negative / scale, split.rows / scale)


def search_alpha(weight: Tensor, splits: Sequence[HeldOut], simulate: Simulate,
                 alphas: Sequence[float] = ALPHAS) -> tuple[float | None, dict[float | None, float]]:
    """The α with the least squared output error of the really quantized layer on held-out rows, pooled over splits.

    No smoothing at all (None) stands among the candidates and wins ties. Without splits α is DEFAULT_ALPHA.

    Args:
        weight: float32 [out, in].
        splits: from `InputStats.held_out`.
        simulate: the layer as it would run.

    Returns:
        the choice and every candidate's squared error.
    """
    if not splits:
        return DEFAULT_ALPHA, {}
    errors: dict[float | None, float] = dict.fromkeys((None, *alphas), 0.0)
    weight_amax = weight.abs().amax(0)
    for split in splits:
        target = split.rows @ weight.T
        input_amax = torch.maximum(split.positive, split.negative)
        for alpha in errors:
            if alpha is None:
                output = simulate(weight, split)
            else:
                scale = smoothing(input_amax, weight_amax, alpha)
                output = simulate(weight * scale, smooth_split(split, scale))
            errors[alpha] += float((output - target).square().sum(dtype=torch.float64))
    return min(errors, key=lambda alpha: errors[alpha]), errors
