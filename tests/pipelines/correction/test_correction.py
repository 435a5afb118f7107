"""Fits of the corrections against planted errors, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import linregress

from segquant_bench.pipelines.config.sections import CorrectionConfig
from segquant_bench.pipelines.correction.correction import (
    Correction,
    correct,
    fit_affine,
    fit_ptqd,
    fit_step,
    fit_tac,
    load_correction,
    save_correction,
)
from segquant_bench.pipelines.errors import PipelineError


def _config(method: str, **values: object) -> CorrectionConfig:
    return CorrectionConfig(name=method, method=method, **values)  # type: ignore[arg-type]


@pytest.fixture
def exact() -> torch.Tensor:
    """Predictions [n, channels, height, width] whose channels have different means and spreads."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, 3, 12, 10, generator=generator)
    return values * torch.tensor([1.0, 0.5, 2.0]).view(-1, 1, 1) + torch.tensor([0.0, 0.3, -1.0]).view(-1, 1, 1)


def test_ptqd_recovers_planted_scale_bias_and_variance(exact: torch.Tensor) -> None:
    """error = 0.08 · exact + bias + white noise, as the paper writes it."""
    bias, spread = torch.tensor([0.05, -0.2, 0.1]), torch.tensor([0.1, 0.05, 0.2])
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    quantized = 1.08 * exact + bias.view(-1, 1, 1) + noise * spread.view(-1, 1, 1)
    fit = fit_ptqd(quantized, exact)
    assert fit.variance is not None
    torch.testing.assert_close(fit.scale.flatten(), torch.full((3,), 1 / 1.08).double(), rtol=2e-3, atol=0)
    torch.testing.assert_close(fit.shift.flatten(), -bias.double() / 1.08, rtol=0, atol=4e-3)
    torch.testing.assert_close(fit.variance, (spread.double() / 1.08).square(), rtol=0.05, atol=0)
    left = correct(quantized, fit) - exact
    torch.testing.assert_close(left.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(left.double().var((0, 2, 3), correction=0), fit.variance, rtol=1e-4, atol=0)


def test_ptqd_slope_is_that_of_a_linear_regression(exact: torch.Tensor) -> None:
    one = exact[:, :1]
    quantized = one + 0.1 * one.square() + 0.03 * one
    reference = linregress(one.flatten().double().numpy(), (quantized - one).flatten().double().numpy())
    fit = fit_ptqd(quantized, one)
    assert float(fit.scale) == pytest.approx(1 / (1 + reference.slope), rel=1e-6)
    assert float(fit.shift) == pytest.approx(-reference.intercept / (1 + reference.slope), rel=1e-5)


def test_ptqd_never_amplifies(exact: torch.Tensor) -> None:
    """A prediction that is too small only loses its mean error: dividing it by less than 1 would raise its noise."""
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    fit = fit_ptqd(0.7 * exact + noise + 0.5, exact)
    assert (fit.scale == 1).all()
    torch.testing.assert_close(fit.shift.flatten(), (0.3 * exact - noise - 0.5).mean((0, 2, 3)).double())


def test_tac_recovers_planted_factors_and_clips_them(exact: torch.Tensor) -> None:
    factors = torch.tensor([0.9, 1.1, 1.5])
    quantized = exact / factors.view(-1, 1, 1)
    torch.testing.assert_close(fit_tac(quantized, exact, 0.2).scale.flatten(), torch.tensor([0.9, 1.1, 1.2]).double())
    wide = fit_tac(quantized, exact, 1.0)
    torch.testing.assert_close(correct(quantized, wide), exact)
    assert not wide.shift.any()
    assert fit_tac(torch.zeros_like(exact), exact, 0.2).scale.flatten().tolist() == [1.0, 1.0, 1.0]


def test_tac_factor_is_the_least_squares_one(exact: torch.Tensor) -> None:
    quantized = exact + 0.3 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(2))
    fit = fit_tac(quantized, exact, 1.0)
    for channel in range(3):
        q, f = (x[:, channel].flatten().double().numpy() for x in (quantized, exact))
        (reference,), *_ = np.linalg.lstsq(q[:, None], f, rcond=None)
        assert float(fit.scale[channel]) == pytest.approx(reference, rel=1e-9)


def test_tac_shrinks_predictions_whose_error_has_nothing_to_do_with_them(exact: torch.Tensor) -> None:
    """Regression dilution: by 1 / (1 + the error's share of the power), though no prediction is too large.

    PTQD's slope is of the error on the exact prediction, and stays zero.
    """
    centred = exact - exact.mean((0, 2, 3), keepdim=True)
    noise = (
        torch.randn(exact.shape, generator=torch.Generator().manual_seed(3))
        * 0.6
        * centred.std((0, 2, 3))[:, None, None]
    )
    shrunk = fit_tac(centred + noise, centred, 1.0).scale.flatten()
    torch.testing.assert_close(shrunk, torch.full((3,), 1 / 1.36).double(), rtol=0.02, atol=0)
    torch.testing.assert_close(
        fit_ptqd(centred + noise, centred).scale.flatten(), torch.ones(3).double(), rtol=0, atol=0.01
    )


def test_affine_recovers_planted_scale_and_shift_of_every_block(exact: torch.Tensor) -> None:
    """A 2 x 2 grid on 12 x 10 places: blocks of 6 x 5."""
    scales, shifts = torch.tensor([[0.8, 1.2], [1.0, 0.9]]), torch.tensor([[0.1, -0.2], [0.0, 0.3]])
    scale, shift = (x.repeat_interleave(6, 0).repeat_interleave(5, 1) for x in (scales, shifts))
    quantized = (exact - shift) / scale
    fit = fit_affine(quantized, exact, 2, 0.0)
    torch.testing.assert_close(fit.scale, scales[None].double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(fit.shift, shifts[None].double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(correct(quantized, fit), exact, rtol=1e-4, atol=1e-4)


def test_blocks_are_as_even_as_can_be(exact: torch.Tensor) -> None:
    """Places 0 … 11 in 5 blocks; a grid finer than the latents has one block a place."""
    places = torch.arange(12) * 5 // 12
    planted = torch.linspace(0.8, 1.2, 5)[places].view(-1, 1)
    fit = fit_affine(exact / planted, exact, 5, 0.0)
    torch.testing.assert_close(fit.scale, torch.linspace(0.8, 1.2, 5).double().view(1, -1, 1).expand(1, 5, 5))
    assert fit_affine(exact, exact, 50, 0.0).scale.shape == (1, 12, 10)


def test_affine_is_ridge_regression(exact: torch.Tensor) -> None:
    """Against the stacked least-squares problem of one block."""
    quantized, ridge = 0.9 * exact[:8, :, :3, :3] + 0.1, 0.2
    q, f = quantized.flatten().double().numpy(), exact[:8, :, :3, :3].flatten().double().numpy()
    n, power = len(q), float((q * q).mean())
    rows = np.vstack([np.c_[q, np.ones(n)], [np.sqrt(ridge * n * power), 0], [0, np.sqrt(ridge * n)]])
    target = np.r_[f, np.sqrt(ridge * n * power), 0]
    (scale, shift), *_ = np.linalg.lstsq(rows, target, rcond=None)
    fit = fit_affine(quantized, exact[:8, :, :3, :3], 1, ridge)
    assert (float(fit.scale), float(fit.shift)) == (pytest.approx(scale, rel=1e-6), pytest.approx(shift, rel=1e-5))
    strong = fit_affine(quantized, exact[:8, :, :3, :3], 1, 1e9)
    assert float(strong.scale) == pytest.approx(1.0, abs=1e-6) and float(strong.shift) == pytest.approx(0, abs=1e-6)


def test_affine_of_a_constant_block_is_a_shift() -> None:
    fit = fit_affine(torch.full((4, 2, 4, 4), 0.5), torch.full((4, 2, 4, 4), 0.7), 2, 0.0)
    assert (fit.scale == 1).all()
    torch.testing.assert_close(fit.shift, torch.full((1, 2, 2), 0.2).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["ptqd", "tac", "affine"])
def test_corrections_lessen_the_error_on_other_samples(method: str, exact: torch.Tensor) -> None:
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3))
    quantized = 1.2 * exact + 0.1 * noise
    fit = fit_step(_config(method), quantized[:32], exact[:32])
    before = (quantized[32:] - exact[32:]).norm()
    assert (correct(quantized[32:], fit) - exact[32:]).norm() < 0.9 * before


@pytest.mark.parametrize("method", ["ptqd", "tac", "affine"])
def test_packed_latents_have_their_channels_last(method: str, exact: torch.Tensor) -> None:
    """[n, tokens, channels] is fitted as [n, channels, tokens]."""
    quantized = 0.9 * exact + 0.05
    flat = [x.flatten(2) for x in (quantized, exact)]
    packed = [x.movedim(1, 2).contiguous() for x in flat]
    spatial, tokens = (fit_step(_config(method), *pair) for pair in ([x[..., None] for x in flat], packed))
    torch.testing.assert_close(tokens.scale, spatial.scale[..., 0])
    result = correct(packed[0], tokens)
    torch.testing.assert_close(result.movedim(2, 1)[..., None], correct(flat[0][..., None], spatial))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_correction_keeps_the_dtype(dtype: torch.dtype, exact: torch.Tensor) -> None:
    fit = fit_tac(exact / 1.1, exact, 0.2)
    assert correct(exact.to(dtype), fit).dtype == dtype


def test_round_trip_and_nearest_timestep(tmp_path: Path) -> None:
    correction = Correction(
        "ptqd", (1000.0, 500.0, 500.0, 10.5), torch.rand(4, 3, 1, 1), torch.rand(4, 3, 1, 1),
        variance=torch.rand(4, 3), record={"prompts": 2},
    )  # fmt: skip
    save_correction(correction, tmp_path)
    loaded = load_correction(tmp_path)
    assert (loaded.method, loaded.timesteps, loaded.record) == (correction.method, correction.timesteps, {"prompts": 2})
    assert torch.equal(loaded.scale, correction.scale) and torch.equal(loaded.shift, correction.shift)
    assert loaded.variance is not None and torch.equal(loaded.variance, correction.variance)
    assert loaded.input_bias is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["correction.json", "correction.safetensors"]
    assert loaded.nearest(1000.0, 0) == (0, True)
    assert [loaded.nearest(500.0, repeat) for repeat in (0, 1, 2)] == [(1, True), (2, True), (2, True)]
    assert loaded.nearest(600.0, 0) == (1, False) and loaded.nearest(0.0, 0) == (3, False)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    save_correction(Correction("tac", (1.0,), torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)), tmp_path)
    file = tmp_path / "correction.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 9'))
    with pytest.raises(PipelineError, match="schema 9"):
        load_correction(tmp_path)


def test_nothing_to_fit(exact: torch.Tensor) -> None:
    with pytest.raises(PipelineError, match="corrects nothing"):
        fit_step(_config("none"), exact, exact)
