"""Noise without a generator: by prompt, whatever the batch."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders import vae

from segquant_bench.pipelines.sampling.draws import drawn_by_prompt, noise_names


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def encoded(rows: int, *seeds: int) -> torch.Tensor:
    """What an autoencoder draws for `rows` pictures without noise of its own: mean 0, deviation 1."""
    posterior = vae.DiagonalGaussianDistribution(torch.zeros(rows, 8, 3, 3))
    with drawn_by_prompt(SimpleNamespace(), generators(*seeds)):
        return posterior.sample()


def test_rows_are_those_of_the_prompt_alone() -> None:
    alone = [encoded(1, seed) for seed in (1, 2, 3)]
    assert torch.equal(encoded(3, 1, 2, 3), torch.cat(alone))
    assert not torch.equal(alone[0], alone[1])


def test_guidance_stacks_prompts() -> None:
    """Rows of one prompt lie as far apart as there are prompts, and differ."""
    both, alone = encoded(4, 1, 2), encoded(2, 2)
    assert torch.equal(both[1::2], alone) and not torch.equal(alone[0], alone[1])


def test_the_schedulers_noise_too() -> None:
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(4)
    sample = torch.zeros(2, 1, 2, 2)

    def stepped(rows: slice, *seeds: int) -> torch.Tensor:
        with drawn_by_prompt(SimpleNamespace(scheduler=scheduler), generators(*seeds)):
            return scheduler.step(sample[rows], 500, sample[rows]).prev_sample

    together = stepped(slice(0, 2), 7, 8)
    assert together.abs().max() > 0
    assert torch.equal(together, torch.cat([stepped(slice(0, 1), 7), stepped(slice(1, 2), 8)]))


def test_other_draws_are_left_alone() -> None:
    """Those with a generator, and those that have no rows of every prompt."""
    torch.manual_seed(5)
    expected = torch.randn(3, 4, 3, 3)
    torch.manual_seed(5)
    assert torch.equal(encoded(3, 1, 2), expected)
    posterior = vae.DiagonalGaussianDistribution(torch.zeros(2, 4, 3, 3))
    with drawn_by_prompt(SimpleNamespace(), generators(1, 2)):
        found = posterior.sample(torch.Generator().manual_seed(9))
    assert torch.equal(found, torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(9)))


def test_all_is_as_it_was_afterwards() -> None:
    scheduler = DDPMScheduler()
    before = (vae.randn_tensor, noise_names(scheduler)["randn_tensor"])
    with drawn_by_prompt(SimpleNamespace(scheduler=scheduler), generators(1)):
        assert vae.randn_tensor is not before[0] and noise_names(scheduler)["randn_tensor"] is not before[1]
    assert (vae.randn_tensor, noise_names(scheduler)["randn_tensor"]) == before
