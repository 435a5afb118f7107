"""SmoothQuant (arXiv 2211.10438, equation 4): X_j / s_j and s_j W_j for every input channel j; AWQ's variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from segquant.observers.stats import HeldOut

ALPHAS: tuple[float, ...] = tuple(step / 10 for step in range(11))
DEFAULT_ALPHA = 0.5
FLOOR = 1e-4
"""Ranges below this share of the mean range count as that much: a channel that calibration hardly saw, or a
dead weight column, must not get a scale that blows up on fresh inputs. (See `seen_range` for dead inputs.)"""

FEW_MARGINS: tuple[float, ...] = (1.0, 1.35)
"""Headroom of static scales in a search of α, where it is searched too."""

Layer = Callable[[HeldOut], Callable[[float], Tensor]]
"""For a split, the output [n, out] of a quantized layer for its rows, with static scales from the split's ranges; by
the headroom of these scales."""
Simulate = Callable[[Tensor], Layer]
"""The quantized layer for a (smoothed) weight [out, in]; weight rounding happens once, inputs come later."""
Rule = Callable[[HeldOut, Tensor, float], Tensor]
"""Smoothing vector [in] from a split's ranges, the weight's largest magnitudes per input channel [in], and α."""
Errors = dict[float | None, float]
"""Squared output error by α (None: no smoothing)."""


@dataclass(frozen=True)
class Choice:
    """α (None: no smoothing), headroom of static scales, squared errors by α."""

    alpha: float | None
    margin: float = 1.0
    errors: Mapping[float | None, float] = field(default_factory=dict)


def smoothing(input_amax: Tensor, weight_amax: Tensor, alpha: float) -> Tensor:
    """s_j = amax(X_j)^α / amax(W_j)^(1−α), float32 [in], with geometric mean 1; ones where one side is all zero."""
    if not bool((input_amax > 0).any()) or not bool((weight_amax > 0).any()):
        return torch.ones_like(input_amax, dtype=torch.float32)
    logs = alpha * seen_range(input_amax).log() - (1 - alpha) * floored(weight_amax).log()
    return (logs - logs.mean()).exp().float()


def awq_smoothing(mean_abs: Tensor, alpha: float) -> Tensor:
    """s_j = mean|X_j|^α (AWQ, arXiv 2306.00978, equation 5), with geometric mean 1: float32 [in]."""
    if not bool((mean_abs > 0).any()):
        return torch.ones_like(mean_abs, dtype=torch.float32)
    logs = alpha * seen_range(mean_abs).log()
    return (logs - logs.mean()).exp().float()


def floored(amax: Tensor) -> Tensor:
    """Ranges, none below FLOOR of their mean, float64."""
    values = amax.double()
    return values.clamp_min(FLOOR * float(values.mean()))


def seen_range(amax: Tensor) -> Tensor:
    """`floored` ranges of an input, with channels that were always 0 at the average."""
    values = floored(amax)
    return torch.where(amax > 0, values, values[amax > 0].mean())


def smooth_split(split: HeldOut, scale: Tensor) -> HeldOut:
    fit = None if split.fit is None else split.fit / scale
    positive, negative = split.positive / scale, split.negative / scale
    return replace(split, positive=positive, negative=negative, rows=split.rows / scale, fit=fit)


def smoothquant_rule(split: HeldOut, weight_amax: Tensor, alpha: float) -> Tensor:
    return smoothing(torch.maximum(split.positive, split.negative), weight_amax, alpha)


def awq_rule(split: HeldOut, weight_amax: Tensor, alpha: float) -> Tensor:
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
    """Squared output error of the quantized layer on held-out rows by α, at its best margin."""
    errors = {alpha: dict.fromkeys(margins, 0.0) for alpha in alphas}
    for split in splits:
        target = split.rows @ weight.T
        for alpha in alphas:
            for margin, error in _margin_errors(weight, split, target, simulate, rule, alpha, margins).items():
                errors[alpha][margin] += error
    return {alpha: min(entry.values()) for alpha, entry in errors.items()}


def _margin_errors(
    weight: Tensor,
    split: HeldOut,
    target: Tensor,
    simulate: Simulate,
    rule: Rule,
    alpha: float | None,
    margins: Sequence[float],
) -> dict[float, float]:
    scale = None if alpha is None else rule(split, weight.abs().amax(0), alpha)
    layer = simulate(weight if scale is None else weight * scale)
    smoothed = split if scale is None else smooth_split(split, scale)
    output = layer(smoothed)
    return {margin: float((output(margin) - target).square_().sum(dtype=torch.float64)) for margin in margins}


def best_alpha(errors: Errors) -> float | None:
    """The α with the least error; None (no smoothing) wins ties."""
    return min(errors, key=lambda alpha: errors[alpha])
