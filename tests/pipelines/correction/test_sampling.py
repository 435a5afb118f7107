"""Corrected steps of real schedulers: prediction, noise, latents."""

from __future__ import annotations

import inspect
import logging
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from segquant_bench.pipelines.correction.correction import Correction, StepFit
from segquant_bench.pipelines.correction.sampling import corrected, corrected_step

CHANNELS = 3


def _correction(scheduler, scale: float = 1.0, shift: float = 0.0, **values) -> Correction:
    calls = len(scheduler.timesteps)
    shape = (calls, CHANNELS, 1, 1)
    timesteps = tuple(float(timestep) for timestep in scheduler.timesteps)
    return Correction("ptqd", timesteps, torch.full(shape, scale), torch.full(shape, shift), **values)


def _ready(scheduler, steps: int = 10):
    scheduler.set_timesteps(steps)
    return scheduler


def _latents(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))


def _step(scheduler, prediction: torch.Tensor, index: int = 0, seed: int = 1, **extra) -> torch.Tensor:
    latents, timestep = _latents(len(prediction)), scheduler.timesteps[index]
    scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else None
    if "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = torch.Generator().manual_seed(seed)
    return scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]


@pytest.mark.parametrize(
    "kind", [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, DDPMScheduler]
)
def test_a_planted_scale_and_bias_are_undone(kind: type) -> None:
    """Steps on 1.1 · prediction + 0.2, corrected, are steps on the prediction; afterwards nothing is corrected."""
    prediction = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(2))
    wanted = _step(_ready(kind()), prediction)
    scheduler = _ready(kind())
    signature = inspect.signature(scheduler.step)
    with corrected(scheduler, _correction(scheduler, 1 / 1.1, -0.2 / 1.1)):
        assert inspect.signature(scheduler.step) == signature, "pipelines look for eta and generator in it"
        result = _step(scheduler, 1.1 * prediction + 0.2)
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)
    assert "step" not in vars(scheduler)
    torch.testing.assert_close(_step(_ready(kind()), prediction), wanted)


def test_none_corrects_nothing() -> None:
    scheduler = _ready(DDIMScheduler())
    with corrected(scheduler, None):
        assert "step" not in vars(scheduler)


def test_input_bias_moves_the_next_latents() -> None:
    scheduler = _ready(EulerDiscreteScheduler())
    prediction, bias = torch.zeros(2, CHANNELS, 8, 8), torch.zeros(10, CHANNELS)
    bias[0] = torch.tensor([0.5, 0.0, -1.0])
    wanted = _step(_ready(EulerDiscreteScheduler()), prediction) + bias[0].view(-1, 1, 1)
    with corrected(scheduler, _correction(scheduler, input_bias=bias)):
        torch.testing.assert_close(_step(scheduler, prediction), wanted)
        result = scheduler.step(prediction, scheduler.timesteps[1], _latents())
    assert result.prev_sample.shape == prediction.shape


def _ddpm_coefficients(scheduler: DDPMScheduler, index: int) -> tuple[float, float]:
    """Closed form of the noise's standard deviation and of the prediction's weight (2006.11239, equation 11)."""
    timestep = int(scheduler.timesteps[index])
    before = int(scheduler.previous_timestep(timestep))
    bar, bar_before = float(scheduler.alphas_cumprod[timestep]), float(scheduler.alphas_cumprod[before])
    alpha = bar / bar_before
    std = math.sqrt((1 - bar_before) / (1 - bar) * (1 - alpha))
    return std, (1 - alpha) / math.sqrt(1 - bar) / math.sqrt(alpha)


def _ddim_coefficients(scheduler: DDIMScheduler, index: int, eta: float) -> tuple[float, float]:
    """Closed form (2010.02502, equations 12 and 16)."""
    timestep = int(scheduler.timesteps[index])
    bar = float(scheduler.alphas_cumprod[timestep])
    bar_before = float(scheduler.alphas_cumprod[timestep - 1000 // len(scheduler.timesteps)])
    std = eta * math.sqrt((1 - bar_before) / (1 - bar) * (1 - bar / bar_before))
    return std, math.sqrt(1 - bar_before - std**2) - math.sqrt(bar_before * (1 - bar) / bar)


def _ancestral_coefficients(scheduler: EulerAncestralDiscreteScheduler, index: int) -> tuple[float, float]:
    here, there = float(scheduler.sigmas[index]), float(scheduler.sigmas[index + 1])
    up = math.sqrt(there**2 * (here**2 - there**2) / here**2)
    return up, math.sqrt(there**2 - up**2) - here


CASES = {
    "ddpm": (lambda: DDPMScheduler(clip_sample=False), {}, _ddpm_coefficients),
    "ddim": (lambda: DDIMScheduler(clip_sample=False), {"eta": 0.7}, lambda s, i: _ddim_coefficients(s, i, 0.7)),
    "euler ancestral": (EulerAncestralDiscreteScheduler, {}, _ancestral_coefficients),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("index", [0, 4])
def test_noise_makes_room_for_the_quantization_noise(case: str, index: int) -> None:
    """What is left of the noise is sqrt(s² - c²·v) / s, with s and c from the papers' closed forms, at least 0."""
    make, extra, coefficients = CASES[case]
    reference = _ready(make())
    std, weight = coefficients(reference, index)
    share = torch.tensor([0.0, 0.36, 4.0])
    variance = (share * (std / weight) ** 2).expand(10, CHANNELS)
    prediction = torch.zeros(2, CHANNELS, 8, 8)
    first, second = (_step(_ready(make()), prediction, index, seed, **extra) for seed in (1, 2))
    found = []
    for seed in (1, 2):
        scheduler = _ready(make())
        with corrected(scheduler, _correction(scheduler, variance=variance)):
            found.append(_step(scheduler, prediction, index, seed, **extra))
    noise, left = first - second, found[0] - found[1]
    for channel, factor in enumerate([1.0, 0.8, 0.0]):
        torch.testing.assert_close(left[:, channel], factor * noise[:, channel], rtol=2e-3, atol=2e-3 * std)


@pytest.mark.parametrize("kind", [DDIMScheduler, FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler])
def test_deterministic_schedulers_keep_their_step(kind: type) -> None:
    prediction = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(3))
    scheduler = _ready(kind())
    with corrected(scheduler, _correction(scheduler, variance=torch.ones(10, CHANNELS))):
        result = _step(scheduler, prediction)
    assert torch.equal(result, _step(_ready(kind()), prediction))


def test_a_learned_variance_is_left_alone() -> None:
    """Channels that the latents do not have pass through."""
    scheduler = _ready(DDPMScheduler(variance_type="learned_range", clip_sample=False))
    prediction = torch.randn(2, 2 * CHANNELS, 8, 8, generator=torch.Generator().manual_seed(4))
    bound = inspect.signature(scheduler.step).bind(prediction, scheduler.timesteps[0], _latents())
    seen: list[torch.Tensor] = []
    fit = StepFit(torch.full((CHANNELS, 1, 1), 2.0), torch.zeros(CHANNELS, 1, 1))
    corrected_step(scheduler, lambda model_output, *_: seen.append(model_output), bound, fit)
    torch.testing.assert_close(seen[0][:, :CHANNELS], 2 * prediction[:, :CHANNELS])
    assert torch.equal(seen[0][:, CHANNELS:], prediction[:, CHANNELS:])


def test_calls_of_one_timestep_are_told_apart() -> None:
    """Heun's solver calls twice at a timestep; each call has its own fit."""
    scheduler = _ready(HeunDiscreteScheduler(), 4)
    calls = len(scheduler.timesteps)
    biases = torch.arange(1.0, calls + 1).view(-1, 1).expand(calls, CHANNELS).contiguous()
    prediction = torch.zeros(1, CHANNELS, 8, 8)
    plain = _ready(HeunDiscreteScheduler(), 4)
    with corrected(scheduler, _correction(scheduler, input_bias=biases)):
        for call, timestep in enumerate(scheduler.timesteps):
            moved = scheduler.step(prediction, timestep, _latents(1)).prev_sample
            wanted = plain.step(prediction, timestep, _latents(1)).prev_sample
            torch.testing.assert_close(moved - wanted, torch.full_like(moved, call + 1.0), rtol=0, atol=1e-4)


def test_the_nearest_timestep_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    fitted, scheduler = _ready(EulerDiscreteScheduler(), 10), _ready(EulerDiscreteScheduler(), 12)
    with caplog.at_level(logging.WARNING), corrected(scheduler, _correction(fitted)):
        for timestep in scheduler.timesteps[:3]:
            scheduler.step(torch.zeros(1, CHANNELS, 8, 8), timestep, _latents(1))
    told = [record.message for record in caplog.records if "not fitted at timestep" in record.message]
    assert len(told) == 1 and "nearest" in told[0]
