"""GPTQ (arXiv 2210.17323): round column by column and move each column's error onto those not yet rounded."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from segquant import functional as F
from segquant.errors import QuantizationError

log = logging.getLogger(__name__)

RETRIES = 6
SHRINKAGE = 0.5


def shrink_gram(gram: Tensor, rows: int) -> Tensor:
    """Pull a Gram matrix of few rows towards its diagonal, which is what a handful of rows can tell reliably.

    Off-diagonal entries keep the share rows / (rows + SHRINKAGE · in), as in Ledoit-Wolf's linear shrinkage. Few
    rows (AdaLN sees one per image) thus lead to plain rounding instead of to weights fitted to them; with
    thousands of rows nothing changes.

    Args:
        gram: XᵀX, [in, in]; not modified.
        rows: rows of X.
    """
    keep = rows / (rows + SHRINKAGE * gram.shape[0])
    return gram * keep + torch.diag(gram.diagonal() * (1 - keep))


def inverse_cholesky(hessian: Tensor, damp: float) -> Tensor:
    """Upper triangular U with UᵀU = (H + λI)⁻¹ (GPTQ, Algorithm 1), λ = damp · mean(diag H).

    Channels with H_jj = 0 (never seen) count as uncorrelated. λ grows tenfold until the factor exists.

    Args:
        hessian: symmetric, positive semi-definite, float [in, in]; not modified.

    Raises:
        QuantizationError: not finite, or not factorable after all retries.
    """
    if not torch.isfinite(hessian).all():
        raise QuantizationError(
            "the Gram matrix of the inputs is not finite; check the calibration data for NaN or inf"
        )
    size = hessian.shape[0]
    matrix = hessian.to(torch.float64, copy=True)
    diagonal = matrix.diagonal()
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal <= 0] = mean
    for attempt in range(RETRIES):
        damped = matrix + torch.eye(size, dtype=matrix.dtype, device=matrix.device) * (
            damp * 10**attempt * mean
        )
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and torch.isfinite(upper).all():
                if attempt:
                    log.info("GPTQ needed a damping of %g", damp * 10**attempt)
                return upper
    raise QuantizationError(
        f"the Gram matrix of the inputs cannot be factored even with a damping of "
        f"{damp * 10 ** (RETRIES - 1):g}; use more calibration data or calibrator 'amax'"
    )


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scale: Tensor,
    dtype: str,
    *,
    damp: float = 0.01,
    act_order: bool = True,
    block: int = 128,
) -> Tensor:
    """Weight on the grid given by `scale`, rounded so that ||X(W − Ŵ)ᵀ|| is small.

    Args:
        weight: float [out, in]; float64 is computed in float64, else in float32.
        hessian: 2XᵀX or any positive multiple, [in, in].
        scale: broadcastable to the weight; fixed beforehand, so any blocks (groups, segments) work in any
        order.
        dtype: number format.
        damp: share of the mean diagonal added to the diagonal.
        act_order: largest diagonal first.
        block: columns whose updates are gathered into one matrix product.

    Returns:
        dequantized weight, same shape; `quantize(result, scale)` gives its codes.
    """
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else None
    if order is not None:
        hessian = hessian[order][:, order]
    upper = inverse_cholesky(hessian, damp)
    work = weight if weight.dtype == torch.float64 else weight.float()
    upper = upper.to(work.dtype)
    scales = scale.to(work.dtype).expand_as(work)
    # columns as rows: each step then reads and writes contiguous memory
    columns = (work if order is None else work[:, order]).T.contiguous()
    scales = (scales if order is None else scales[:, order]).T.contiguous()
    columns = columns.clone() if columns.data_ptr() == weight.data_ptr() else columns
    rounded = _round_columns(columns, scales, upper, dtype, block)
    if order is not None:
        rounded = rounded[torch.argsort(order)]
    return rounded.T.contiguous()


def _round_columns(columns: Tensor, scales: Tensor, upper: Tensor, dtype: str, block: int) -> Tensor:
    """GPTQ's double loop on `columns` [in, out], which is overwritten."""
    rounded = torch.empty_like(columns)
    diagonal = upper.diagonal().tolist()
    for start in range(0, columns.shape[0], block):
        stop = min(start + block, columns.shape[0])
        errors = torch.empty_like(columns[start:stop])
        for j in range(start, stop):
            rounded[j] = F.fake_quantize(columns[j], scales[j], dtype)
            errors[j - start] = (columns[j] - rounded[j]) / diagonal[j]
            if j + 1 < stop:
                columns[j + 1 : stop].addr_(upper[j, j + 1 : stop], errors[j - start], alpha=-1)
        if stop < columns.shape[0]:
            columns[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return rounded
