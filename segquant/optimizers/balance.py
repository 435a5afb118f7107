"""PTQ4DiT (arXiv 2405.16005): Channel-wise Salience Balancing and Spearman's-ρ-guided Salience Calibration.

The salience of a channel is its largest magnitude. Balancing moves the input's and the weight's salience to their
geometric mean. The input's salience changes over the sampling steps, so it is averaged over them with weights
η_t ∝ exp(−ρ_t), ρ_t being Spearman's correlation with the weight's salience: steps at which the two sides are
large in different channels have the most to gain and count the most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segquant.optimizers.smooth import floored, seen_range


def balance(salience_x: Tensor, salience_w: Tensor) -> Tensor:
    """s with X / s and W · s both at the salience sqrt(s(X)·s(W)), that is s = sqrt(s(X) / s(W)).

    Saliences far below their mean are floored and channels dead throughout count as average ones, as in
    `optimizers.smooth`: neither may get a scale that blows up on fresh inputs.

    Args:
        salience_x, salience_w: at least 0, [in].

    Returns:
        positive float32 [in] (float64 for float64 saliences); all ones where one side is entirely zero.
    """
    dtype = torch.float64 if salience_x.dtype == torch.float64 else torch.float32
    if not bool((salience_x > 0).any()) or not bool((salience_w > 0).any()):
        return torch.ones_like(salience_x, dtype=dtype)
    return (seen_range(salience_x) / floored(salience_w)).sqrt().to(dtype)
