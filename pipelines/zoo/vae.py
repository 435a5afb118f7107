"""The small autoencoder: 64×64 RGB to 16×8×8, as SD3's without quant_conv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from segquant_bench.pipelines.zoo.loop import Recipe, fit


def build() -> AutoencoderKL:
    """An untrained `AutoencoderKL`."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(32, 48, 96, 128),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=16,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] → float [n, 3, h, w] in −1 … 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Squared, absolute and edge error in −1 … 1."""
    error = F.mse_loss(y, x) + 0.1 * F.l1_loss(y, x)
    return error + 0.1 * sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))


def train(pictures: np.ndarray, recipe: Recipe, folder: Path, device: str) -> AutoencoderKL:
    """Both halves with a light KL term, shifts and mirrors."""
    torch.manual_seed(0)
    vae = build().to(device).to(memory_format=torch.channels_last)
    images = to_tensor(pictures)

    def loss(step: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(step)
        index = torch.randint(len(images), (recipe.batch,), generator=draw)
        shift = torch.randint(-3, 4, (2,), generator=draw).tolist()
        x = images[index].to(device).roll(shift, (2, 3)).to(memory_format=torch.channels_last)
        if step % 2:
            x = x.flip(3)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=draw).to(device)
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        total: torch.Tensor = reconstruction_loss(y, x) + 2e-7 * posterior.kl().float().mean()
        return total

    fit("vae", vae, loss, recipe, folder)
    latents = encode(vae, images)
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Unscaled latent means: [n, 16, 8, 8]."""
    device = next(vae.parameters()).device
    return torch.cat([vae.encode(x.to(device)).latent_dist.mean.float().cpu() for x in images.split(256)])


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean PSNR in dB, peak-to-peak range 2."""
    device = next(vae.parameters()).device
    errors = []
    for x in images.split(256):
        y = vae.decode(vae.encode(x.to(device)).latent_dist.mean).sample.clamp(-1, 1)
        errors.append((y - x.to(device)).square().mean((1, 2, 3)).cpu())
    return float((10 * torch.log10(4 / torch.cat(errors))).mean())
