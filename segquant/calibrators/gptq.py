"""GPTQ (arXiv 2210.17323): round column by column; later columns make up for the error."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.bounds import check_most
from segquant.calibrators.protocol import Calibrator, Inputs
from segquant.checks import check_fields
from segquant.errors import QuantizationError
from segquant.numerics import functional as F
from segquant.registry import register

log = logging.getLogger(__name__)

RETRIES = 6
SHRINKAGE = 0.5
"""Weight of the diagonal against the rows seen, in units of in_features rows."""


def shrink_gram(gram: Tensor, rows: int, shrinkage: float = SHRINKAGE) -> Tensor:
    """XᵀX [in, in] with its off-diagonal times rows / (rows + shrinkage · in), as Ledoit and Wolf do."""
    keep = rows / (rows + shrinkage * gram.shape[0])
    return gram * keep + torch.diag(gram.diagonal() * (1 - keep))


def inverse_cholesky(hessian: Tensor, damp: float) -> Tensor:
    """Upper triangular U with UᵀU = (H + λI)⁻¹ (GPTQ, Algorithm 1), λ = damp · mean(diag H).

    Channels with H_jj = 0 count as uncorrelated. λ grows tenfold until the factor exists.

    Raises:
        QuantizationError: not finite, or never factorable.
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
    upper: Tensor
    for attempt in range(RETRIES):
        damped = matrix + torch.eye(size, dtype=matrix.dtype, device=matrix.device) * (damp * 10**attempt * mean)
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
    """Weight [out, in] rounded to the grid of `scale` so that ||X(W − Ŵ)ᵀ|| is small; returned dequantized.

    Args:
        hessian: any positive multiple of XᵀX, [in, in].
        scale: broadcastable to the weight.
        damp: share of the mean diagonal added to the diagonal.
        act_order: largest diagonal first.
        block: columns per matrix product.
    """
    return round_with(weight, factorize(hessian, damp, act_order), scale, dtype, block=block)


@dataclass(frozen=True)
class Factor:
    """The column order (None: as they come) and `inverse_cholesky` in that order."""

    order: Tensor | None
    upper: Tensor


def factorize(hessian: Tensor, damp: float = 0.01, act_order: bool = True) -> Factor:
    """The part of GPTQ that does not depend on the weight."""
    if not act_order:
        return Factor(None, inverse_cholesky(hessian, damp))
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return Factor(order, inverse_cholesky(hessian[order][:, order], damp))


def round_with(weight: Tensor, factor: Factor, scale: Tensor, dtype: str, *, block: int = 128) -> Tensor:
    """`gptq` with a Hessian that is factored already."""
    order = factor.order
    work = weight if weight.dtype == torch.float64 else weight.float()
    scales = scale.to(work.dtype).expand_as(work)
    # columns as rows: each step then reads and writes contiguous memory
    columns = (work if order is None else work[:, order]).T.clone(memory_format=torch.contiguous_format)
    scales = (scales if order is None else scales[:, order]).T.contiguous()
    rounded = _round_columns(columns, scales, factor.upper.to(work.dtype), dtype, block)
    if order is not None:
        rounded = rounded[torch.argsort(order)]
    return rounded.T.contiguous()


def _round_columns(columns: Tensor, scales: Tensor, upper: Tensor, dtype: str, block: int) -> Tensor:
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


@register
@dataclass(frozen=True)
class Gptq(Calibrator):
    """GPTQ; fields as in `gptq`."""

    act_order: bool = True
    damp: float = 0.01
    name: ClassVar[str] = "gptq"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.damp > 0:
            raise ValueError(f"damp must be positive, not {self.damp}")
        check_most(self)

    def prepare(self, inputs: Inputs) -> Factor:
        assert inputs.gram is not None
        return factorize(inputs.gram, self.damp, self.act_order)

    def round(self, weight: Tensor, scale: Tensor, dtype: str, prepared: Factor) -> Tensor:
        return round_with(weight, prepared, scale, dtype)
