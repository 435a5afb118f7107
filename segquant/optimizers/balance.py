"""PTQ4DiT (arXiv 2405.16005): Channel-wise Salience Balancing and Spearman's-ρ-guided Salience Calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from segquant.optimizers.smooth import floored, seen_range


def balance(salience_x: Tensor, salience_w: Tensor) -> Tensor:
    """s = sqrt(s(X) / s(W)), float [in]; all ones where one side is entirely zero."""
    dtype = torch.float64 if salience_x.dtype == torch.float64 else torch.float32
    if not bool((salience_x > 0).any()) or not bool((salience_w > 0).any()):
        return torch.ones_like(salience_x, dtype=dtype)
    return (seen_range(salience_x) / floored(salience_w)).sqrt().to(dtype)
