"""SmoothQuant (arXiv 2211.10438, equation 4): X_j / s_j and s_j W_j for every input channel j."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segquant.stats import HeldOut

ALPHAS: tuple[float, ...] = tuple(step / 10 for step in range(11))
DEFAULT_ALPHA = 0.5
FLOOR = 1e-4
"""Ranges below this share of the mean range count as that much: a channel that calibration hardly saw, or a
dead weight column, must not get a scale that blows up on fresh inputs."""

MARGINS: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0)
"""Headroom of static scales over the range that calibration saw, tried where rows are few."""

TOLERANCE = 24.0
"""Errors pooled over n held-out rows (two a call at most, since rows of a call resemble each other) count as
equal if they differ by less than a share of (TOLERANCE / n)²: a half at 32 rows, a tenth at 80."""

Layer = Callable[[HeldOut], Tensor]
"""Output [n, out] of a quantized layer for a split's rows, with static scales from the split's ranges."""
Simulate = Callable[[Tensor], Layer]
"""The quantized layer for a (smoothed) weight [out, in]; weight rounding happens once, inputs come later."""


@dataclass(frozen=True)
class Choice:
    """What the search found: α (None: no smoothing), headroom of static scales, all candidates' errors."""

    alpha: float | None
    margin: float = 1.0
    errors: Mapping[tuple[float | None, float], float] = field(default_factory=dict)


def smoothing(input_amax: Tensor, weight_amax: Tensor, alpha: float) -> Tensor:
    """s_j = amax(X_j)^α / amax(W_j)^(1−α), with geometric mean 1.

    The common factor is free (every scale follows it); mean 1 keeps values where 16 bits are safe.

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
    return HeldOut(split.positive / scale, split.negative / scale, split.rows / scale, split.calls)


def search_alpha(
    weight: Tensor,
    splits: Sequence[HeldOut],
    simulate: Simulate,
    *,
    alphas: Sequence[float] = ALPHAS,
    margins: Sequence[float] = (1.0,),
) -> Choice:
    """The α with the least squared output error of the really quantized layer on held-out rows.

    Errors are pooled over splits. No smoothing at all (None) stands among the candidates and wins ties.
    Without splits α is DEFAULT_ALPHA.

    Args:
        weight: float32 [out, in].
        splits: from `InputStats.held_out`.
        simulate: the layer as it would run.
        margins: factors on the ranges, tried with every α.
    """
    if not splits:
        return Choice(DEFAULT_ALPHA)
    errors = dict.fromkeys(itertools.product((None, *alphas), margins), 0.0)
    weight_amax = weight.abs().amax(0)
    for split in splits:
        target = split.rows @ weight.T
        input_amax = torch.maximum(split.positive, split.negative)
        for alpha in (None, *alphas):
            scale = torch.ones_like(input_amax) if alpha is None else smoothing(input_amax, weight_amax, alpha)
            layer = simulate(weight * scale)
            smoothed = smooth_split(split, scale)
            for margin in margins:
                wider = HeldOut(smoothed.positive * margin, smoothed.negative * margin, smoothed.rows)
                errors[alpha, margin] += float((layer(wider) - target).square().sum(dtype=torch.float64))
    alpha, margin = min(errors, key=lambda candidate: errors[candidate])
    # Too little headroom clips fresh rows and costs far more than too much: take the widest that is as
    # good as the best within what so few rows can tell.
    tolerance = 1 + (TOLERANCE / sum(min(len(split.rows), 2 * split.calls) for split in splits)) ** 2
    good = [wide for wide in margins if errors[alpha, wide] <= tolerance * errors[alpha, margin]]
    return Choice(alpha, max(good), errors)
