"""Smoothing that is the same for all taps of a convolution's input channel."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from segquant.observers.stats import HeldOut
from segquant.optimizers.smooth import Rule


def tie(values: Tensor, taps: int) -> Tensor:
    """The largest of every channel's taps, for all of them: [in] -> [in]."""
    return values if taps == 1 else _peak(values, taps).repeat_interleave(taps)


def tie_rule(rule: Rule, taps: int) -> Rule:
    """A smoothing rule with the same value for all taps of a channel."""
    if taps == 1:
        return rule

    def tied(split: HeldOut, weight_amax: Tensor, alpha: float) -> Tensor:
        mean = None if split.mean_abs is None else split.mean_abs.unflatten(0, (-1, taps)).mean(1)
        few = replace(
            split, positive=_peak(split.positive, taps), negative=_peak(split.negative, taps), mean_abs=mean
        )  # fmt: skip
        return rule(few, _peak(weight_amax, taps), alpha).repeat_interleave(taps)

    return tied


def _peak(values: Tensor, taps: int) -> Tensor:
    folded: Tensor = values.unflatten(0, (-1, taps))
    return folded.amax(1)
