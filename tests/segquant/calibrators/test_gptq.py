"""GPTQ against a brute-force OBQ, against rounding, and its damping."""

from __future__ import annotations

import pytest
import torch

from segquant import QuantizationError
from segquant.calibrators.gptq import gptq, inverse_cholesky
from segquant.numerics import functional as F
from segquant.numerics.fake_quant import expand_weight_scale
from segquant.numerics.formats import QuantSpec
from segquant.ranges.amax import weight_scale


def problem(out: int, width: int, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and strongly correlated inputs, float64."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=g, dtype=torch.float64)
    mixing = torch.randn(width // 4, width, generator=g, dtype=torch.float64)
    x = torch.randn(rows, width // 4, generator=g, dtype=torch.float64) @ mixing
    return weight, x + 0.3 * torch.randn(rows, width, generator=g, dtype=torch.float64)


def brute_force_obq(weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, dtype: str) -> torch.Tensor:
    """Optimal Brain Quantization in fixed column order: invert the remaining Hessian anew at every step."""
    work, result = weight.clone(), torch.empty_like(weight)
    for j in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[j:, j:])
        result[:, j] = F.fake_quantize(work[:, j], scale[:, j], dtype)
        error = (work[:, j] - result[:, j]) / inverse[0, 0]
        work[:, j:] -= torch.outer(error, inverse[0])
    return result


@pytest.mark.parametrize("dtype", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("block", [3, 128])
def test_equals_brute_force_obq(dtype: str, block: int) -> None:
    weight, x = problem(6, 12, 40)
    hessian = 2 * x.T @ x
    scale = weight_scale(weight, QuantSpec(dtype), (1,) * 6, (4, 8)).repeat_interleave(torch.tensor([4, 8]), 1)
    ours = gptq(weight, hessian, scale, dtype, damp=1e-14, act_order=False, block=block)
    torch.testing.assert_close(ours, brute_force_obq(weight, hessian, scale, dtype), rtol=0, atol=1e-9)


@pytest.mark.parametrize("columns", [(64,), (16,) * 4, (48, 16)])
@pytest.mark.parametrize("rows", [(1,) * 32, (20, 12)])
@pytest.mark.parametrize("act_order", [True, False])
def test_beats_rounding_on_correlated_inputs(rows: tuple[int, ...], columns: tuple[int, ...], act_order: bool) -> None:
    weight, x = problem(32, 64, 600)
    weight, x = weight.float(), x.float()
    before = weight.clone()
    scale = expand_weight_scale(weight_scale(weight, QuantSpec("int4"), rows, columns), rows, columns)
    ours = gptq(weight, x.T @ x, scale, "int4", act_order=act_order)
    rounded = F.fake_quantize(weight, scale, "int4")
    assert (x @ (ours - weight).T).norm() <= 0.6 * (x @ (rounded - weight).T).norm()
    assert torch.equal(F.fake_quantize(ours, scale, "int4"), ours)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("act_order", [True, False])
def test_equals_rounding_when_inputs_are_uncorrelated(act_order: bool) -> None:
    weight, _ = problem(8, 16, 10)
    scale = weight_scale(weight, QuantSpec("int4"), (1,) * 8, (16,))
    hessian = torch.diag(torch.arange(1.0, 17.0, dtype=torch.float64))
    assert torch.equal(
        gptq(weight, hessian, scale, "int4", act_order=act_order), F.fake_quantize(weight, scale, "int4")
    )


def test_inverse_cholesky() -> None:
    _, x = problem(2, 10, 50)
    hessian = x.T @ x
    upper = inverse_cholesky(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(10)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped))


def test_dead_channels_and_singular_hessians() -> None:
    weight, x = problem(8, 16, 3)
    x[:, 5] = 0
    scale = weight_scale(weight, QuantSpec("int4"), (1,) * 8, (16,))
    found = gptq(weight, x.T @ x, scale, "int4")
    assert torch.isfinite(found).all()
    assert torch.equal(found[:, 5], F.fake_quantize(weight, scale, "int4")[:, 5])
    assert torch.equal(gptq(weight, torch.zeros(16, 16), scale, "int4"), F.fake_quantize(weight, scale, "int4"))


def test_damping_is_retried_and_gives_up_with_a_sentence() -> None:
    indefinite = torch.eye(4, dtype=torch.float64)
    indefinite[0, 1] = indefinite[1, 0] = 1.05
    assert torch.isfinite(inverse_cholesky(indefinite, 0.01)).all()
    indefinite[0, 1] = indefinite[1, 0] = 1e9
    with pytest.raises(QuantizationError, match="cannot be factored"):
        inverse_cholesky(indefinite, 0.01)
    with pytest.raises(QuantizationError, match="not finite"):
        inverse_cholesky(torch.full((2, 2), float("nan")), 0.01)
