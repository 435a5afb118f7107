"""Low-rank approximations for SVDQuant (arXiv 2411.05007, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from segquant.numerics.formats import check_choice
from segquant.numerics.layout import Layout

SVDS = ("exact", "randomized")
OVERSAMPLING = 10
"""Least extra columns of the randomized form; half the rank where that is more."""
POWER_ITERATIONS = 3
"""With the oversampling enough for 1 % even on spectra that fall no faster than a straight line."""


def truncated(weight: Tensor, rank: int, how: str = "exact", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rank-r approximation of a weight [out, in]: up [out, r], down [r, in], float32, r at most min(out, in).

    `how` is "exact", or "randomized": cheaper for small ranks.

    Raises:
        ValueError: an unknown `how`, or rank < 1.
    """
    check_choice("svd", how, SVDS)
    if rank < 1:
        raise ValueError(f"a low-rank branch has rank 1 or more, not {rank}; optimizer 'smooth' has none")
    return low_rank(weight, rank) if how == "exact" else random_low_rank(weight, rank, seed)


def low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-r approximation in the Frobenius norm (Eckart–Young): up [out, r], down [r, in], float32."""
    out, width = weight.shape
    rank = min(rank, out, width)
    values = weight.double()
    if out <= width:
        basis = torch.linalg.eigh(values @ values.T).eigenvectors[:, -rank:]
        up, down = basis, basis.T @ values
    else:
        basis = torch.linalg.eigh(values.T @ values).eigenvectors[:, -rank:]
        up, down = values @ basis, basis.T
    return _balance(up, down)


def random_low_rank(weight: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Randomized `low_rank` (Halko et al. 2011, Algorithm 4.4); seeded."""
    out, width = weight.shape
    rank = min(rank, out, width)
    wide = min(rank + max(OVERSAMPLING, rank // 2), out, width)
    generator = torch.Generator().manual_seed(seed)
    values = weight.float()
    start = torch.randn(width, wide, generator=generator, dtype=torch.float32, device="cpu").to(values.device)
    basis = torch.linalg.qr(values @ start).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(values @ torch.linalg.qr(values.T @ basis).Q).Q
    small = basis.T @ values
    left = torch.linalg.eigh((small @ small.T).double()).eigenvectors[:, -rank:].float()
    return _balance(basis @ left, left.T @ small)


def weighted_low_rank(target: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """argmin over rank-r L of ||X(target − L)ᵀ||_F with gram = XᵀX: up [out, r], down [r, in], float32."""
    matrix = gram.double()
    mean = float(matrix.diagonal().mean()) or 1.0
    damping = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) * (1e-4 * mean)
    root = torch.linalg.cholesky(matrix + damping)
    up, down = low_rank(target.double() @ root, rank)
    return _balance(up.double(), torch.linalg.solve_triangular(root, down.double(), upper=False, left=False))


def _balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    a, b = up.norm(dim=0), down.norm(dim=1)
    ratio = torch.where((a > 0) & (b > 0), (b / a.clamp_min(1e-30)).sqrt(), torch.ones_like(a))
    return (up * ratio).float(), (down / ratio[:, None]).float()


def rank_share(layout: Layout, rank: int) -> float:
    """Rank of one branch if rank · (in + out) numbers are dealt evenly."""
    total = sum(layout.in_features + rows for rows in layout.branches)
    return rank * (layout.in_features + layout.out_features) / total
