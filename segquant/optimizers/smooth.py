"""SmoothQuant (arXiv 2211.10438, equation 4): X_j / s_j and s_j W_j for every input channel j; AWQ's variant."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
Rule = Callable[[HeldOut, Tensor, float], Tensor]
"""Smoothing vector [in] from a split's ranges, the weight's largest magnitudes per input channel [in], and α."""
Errors = dict[tuple[float | None, float], float]
"""Squared output error by (α or None, margin)."""


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


def awq_smoothing(mean_abs: Tensor, alpha: float) -> Tensor:
    """s_j = mean|X_j|^α (AWQ, arXiv 2306.00978, equation 5), with geometric mean 1: float32 [in]."""
    if not bool((mean_abs > 0).any()):
        return torch.ones_like(mean_abs, dtype=torch.float32)
    logs = alpha * _log_range(mean_abs)
    return (logs - logs.mean()).exp().float()


def _log_range(amax: Tensor) -> Tensor:
    values = amax.double()
    return values.clamp_min(FLOOR * float(values.mean())).log()


def smooth_split(split: HeldOut, scale: Tensor) -> HeldOut:
    """A split in the smoothed space: amax(X / s) = amax(X) / s, both signs likewise."""
    fit = None if split.fit is None else split.fit / scale
    positive, negative = split.positive / scale, split.negative / scale
    return replace(split, positive=positive, negative=negative, rows=split.rows / scale, fit=fit)


def smoothquant_rule(split: HeldOut, weight_amax: Tensor, alpha: float) -> Tensor:
    """`smoothing` as a rule."""
    return smoothing(torch.maximum(split.positive, split.negative), weight_amax, alpha)


def awq_rule(split: HeldOut, weight_amax: Tensor, alpha: float) -> Tensor:
    """`awq_smoothing` as a rule; the weight does not enter."""
    assert split.mean_abs is not None
    return awq_smoothing(split.mean_abs, alpha)


def alpha_errors(
    weight: Tensor,
    splits: Sequence[HeldOut],
    simulate: Simulate,
    *,
    rule: Rule = smoothquant_rule,
    alphas: Sequence[float | None] = (None, *ALPHAS),
    margins: Sequence[float] = (1.0,),
) -> Errors:
    """Squared output error of the really quantized layer on held-out rows, pooled over splits.

    Args:
        weight: float32 [out, in].
        splits: from `InputStats.held_out`.
        simulate: the layer as it would run.
        rule: from α to a smoothing vector.
        alphas: candidates; None is no smoothing at all.
        margins: factors on the ranges, tried with every α.
    """
    errors: Errors = dict.fromkeys(itertools.product(alphas, margins), 0.0)
    weight_amax = weight.abs().amax(0)
    for split in splits:
        target = split.rows @ weight.T
        for alpha in alphas:
            scale = None if alpha is None else rule(split, weight_amax, alpha)
            layer = simulate(weight if scale is None else weight * scale)
            smoothed = split if scale is None else smooth_split(split, scale)
            for margin in margins:
                wider = replace(smoothed, positive=smoothed.positive * margin, negative=smoothed.negative * margin)
                errors[alpha, margin] += float((layer(wider) - target).square().sum(dtype=torch.float64))
    return errors


def best_choice(errors: Errors, splits: Sequence[HeldOut], margins: Sequence[float] = (1.0,)) -> Choice:
    """The α with the least error, no smoothing (None) winning ties, and the headroom that goes with it."""
    if not splits:
        return Choice(DEFAULT_ALPHA)
    alpha, margin = min(errors, key=lambda candidate: errors[candidate])
    # Too little headroom clips fresh rows and costs far more than too much: take the widest that is as
    # good as the best within what so few rows can tell.
    tolerance = 1 + (TOLERANCE / sum(min(len(split.rows), 2 * split.calls) for split in splits)) ** 2
    good = [wide for wide in margins if errors[alpha, wide] <= tolerance * errors[alpha, margin]]
    return Choice(alpha, max(good), errors)


def search_alpha(
    weight: Tensor,
    splits: Sequence[HeldOut],
    simulate: Simulate,
    *,
    rule: Rule = smoothquant_rule,
    alphas: Sequence[float | None] = (None, *ALPHAS),
    margins: Sequence[float] = (1.0,),
) -> Choice:
    """`best_choice` of `alpha_errors`; without splits α is DEFAULT_ALPHA."""
    errors = alpha_errors(weight, splits, simulate, rule=rule, alphas=alphas, margins=margins)
    return best_choice(errors, splits, margins)
