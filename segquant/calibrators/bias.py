"""Bias correction (Nagel et al., arXiv 1906.04721, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_ROWS = 4
"""Fewest rows whose t statistics have a finite second moment, which the shrinkage needs."""


def sample_bias_correction(target: Tensor, output: Tensor, independent: int | None = None) -> Tensor:
    """Mean of (target − output) [n, out] over sampled rows, shrunk towards zero: [out].

    With t_o the mean over its standard error and ν = n − 1, all channels are multiplied by one positive-part
    James–Stein factor (Efron and Morris 1973)

        max(0, 1 − [ν / (ν − 2)] / mean_o t_o²).

    Fewer than LEAST_ROWS rows give zeros.

    Args:
        independent: rows that count as independent, e.g. calls.

    Raises:
        ValueError: shapes that differ, or more independent rows than rows.
    """
    if target.shape != output.shape or target.dim() != 2:
        raise ValueError(
            f"bias correction compares rows [n, out] of equal shape, not {list(target.shape)} and {list(output.shape)}"
        )
    rows = target.shape[0]
    count = rows if independent is None else independent
    if not 0 <= count <= rows:
        raise ValueError(f"{count} of {rows} rows cannot be independent; give at most the number of rows")
    dtype = target.dtype if target.dtype == torch.float64 else torch.float32
    if count < LEAST_ROWS:
        return torch.zeros(target.shape[1], dtype=dtype, device=target.device)
    error = target.double() - output.double()
    mean = error.mean(0)
    variance = (error - mean).square().sum(0) / (rows - 1) / count
    return (mean * _shrinkage(mean, variance, count)).to(dtype)


def _shrinkage(mean: Tensor, variance: Tensor, count: int) -> Tensor:
    # rounding in float64 leaves a constant error with a variance of this order, not with zero
    noisy = variance > torch.finfo(mean.dtype).eps * mean.square()
    if not bool(noisy.any()):
        return torch.ones_like(mean)
    degrees = count - 1
    strength = (mean[noisy].square() / variance[noisy]).mean()
    factor = (1 - degrees / (degrees - 2) / strength.clamp_min(torch.finfo(mean.dtype).tiny)).clamp_min(0)
    return torch.where(noisy, factor, torch.ones_like(factor))
