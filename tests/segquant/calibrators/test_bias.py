"""Bias correction: planted biases, and shrinkage that pays on fresh rows."""

from __future__ import annotations

import pytest
import torch

from segquant.calibrators.bias import LEAST_ROWS, sample_bias_correction


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [LEAST_ROWS, 64, 4096])
def test_a_planted_bias_is_found(rows: int) -> None:
    bias, target = 3 * tensor(200, seed=3), tensor(rows, 200)
    output = target - bias + 0.1 * tensor(rows, 200, seed=1)
    found = sample_bias_correction(target, output)
    assert float((found - bias).norm() / bias.norm()) < 0.2 / rows**0.5
    assert sample_bias_correction(target.float(), output.float()).dtype == torch.float32


def test_a_constant_error_is_taken_over_in_full() -> None:
    target, bias = tensor(10, 6), torch.tensor([0.3, 0.0, -2.0, 1e-3, 5.0, 0.1], dtype=torch.float64)
    torch.testing.assert_close(sample_bias_correction(target, target - bias), bias, rtol=1e-9, atol=1e-12)
    # … even beside a channel that is nothing but noise
    output = target - bias
    output[:, 1] += tensor(10, seed=4) - tensor(10, seed=4).mean()
    found = sample_bias_correction(target, output)
    torch.testing.assert_close(found[2:], bias[2:], rtol=1e-9, atol=1e-12)
    assert abs(float(found[1])) < 1e-12


@pytest.mark.parametrize("scale", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("rows", [5, 16])
def test_shrunk_mean_beats_the_plain_mean_and_no_correction(scale: float, rows: int) -> None:
    """Expected squared error on fresh rows, over channels of very different units, averaged over draws."""
    units = torch.logspace(-2, 2, 300, dtype=torch.float64)
    shrunk = plain = none = 0.0
    for seed in range(40):
        bias = scale * tensor(300, seed=seed)
        error = bias + tensor(rows, 300, seed=seed + 1000)
        found = sample_bias_correction(error * units, torch.zeros(rows, 300)) / units
        shrunk += float((found - bias).square().sum())
        plain += float((error.mean(0) - bias).square().sum())
        none += float(bias.square().sum())
    assert shrunk < plain
    # noise alone: the positive part leaves a small remainder; a bias as large as its noise: clearly worth it
    assert shrunk < (none if scale >= 0.3 else max(none * 1.1, 0.15 * plain))


def test_factor_is_the_stated_one() -> None:
    error = tensor(7, 50) + 0.5
    mean, variance = error.mean(0), error.var(0)
    for count in (7, 5):
        strength = (mean.square() / (variance / count)).mean()
        expected = mean * max(0.0, 1 - (count - 1) / (count - 3) / float(strength))
        found = sample_bias_correction(error, torch.zeros_like(error), independent=count)
        torch.testing.assert_close(found, expected)


def test_too_few_rows_and_rows_of_few_calls_change_nothing() -> None:
    target, output = tensor(8, 5), tensor(8, 5, seed=1) + 100
    few = LEAST_ROWS - 1
    assert not sample_bias_correction(target[:few], output[:few]).any()
    assert not sample_bias_correction(target, output, independent=few).any()
    assert not sample_bias_correction(target[:0], output[:0]).any()
    assert sample_bias_correction(target, output).all()
    assert not sample_bias_correction(target, target).any()


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shape"):
        sample_bias_correction(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="9 of 4 rows"):
        sample_bias_correction(torch.zeros(4, 3), torch.zeros(4, 3), independent=9)
