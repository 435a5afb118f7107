"""A deeper decoder for the small autoencoder, trained on at the encoder's latents."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from segquant_bench.pipelines.zoo.loop import Recipe, fit

log = logging.getLogger(__name__)
LAYERS = 2
NOISE = 0.03
FLOOR = 1e-5


def deepened(source: AutoencoderKL, layers: int = LAYERS) -> AutoencoderKL:
    """The same function with `layers` + 1 residual blocks a level of the decoder, `layers` of the encoder.

    `AutoencoderKL` has one depth for both halves. Blocks that this adds pass their input on, bit by bit: in the
    encoder they are zero and stay so; in the decoder only their second convolution is, which training changes.
    Latents, scale and shift stay as they are. Without effect where `source` is as deep already.
    """
    torch.manual_seed(0)
    settings = {key: value for key, value in source.config.items() if not key.startswith("_")}
    deep = AutoencoderKL.from_config(settings | {"layers_per_block": layers})
    known = source.state_dict()
    with torch.no_grad():
        for name, tensor in deep.state_dict().items():
            if name in known:
                tensor.copy_(known[name])
            elif name.startswith("encoder.") or ".conv2." in name:
                tensor.zero_()
    return deep


def decibels(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Minus the mean PSNR in dB of y [n, 3, h, w] against x in −1 … 1, the loss that the measure asks for.

    Values beyond the range are no error where x is at its end: pictures are clamped.
    """
    error = y - x
    free = (x.abs() >= 1) & (error * x > 0)
    squared = error.masked_fill(free, 0.0).square().mean((1, 2, 3))
    return 10 * torch.log10((squared + FLOOR) / 4).mean()


def moved(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Half of the pictures [n, 3, h, w] mirrored, half rolled by up to 3 pixels, as the encoder has seen them."""
    mirror, roll = (torch.rand(2, len(images), generator=draw) < 0.5).tolist()
    shifts = torch.randint(-3, 4, (len(images), 2), generator=draw).tolist()
    turned = [x.flip(2) if flip else x for x, flip in zip(images, mirror, strict=True)]
    return torch.stack([x.roll(by, (1, 2)) if go else x for x, by, go in zip(turned, shifts, roll, strict=True)])


def _drawn(images: torch.Tensor, count: int, draw: torch.Generator) -> torch.Tensor:
    return images[torch.randint(len(images), (count,), generator=draw)]


def train(
    source: AutoencoderKL,
    images: torch.Tensor,
    held_out: np.ndarray,
    more: torch.Tensor,
    recipe: Recipe,
    folder: Path,
    device: str,
) -> AutoencoderKL:
    """Train a deeper decoder on the pictures that are not `held_out` [n]; 3 % of noise on the latents.

    Half of a batch are `more` pictures, of other drawers, which narrows the gap between seen and held-out ones.
    Denoisers stay valid: the encoder is `source`'s.
    """
    seen = images[torch.from_numpy(~held_out)]
    model, source = deepened(source).to(device), source.to(device).eval()
    noise, half = NOISE / source.config.scaling_factor, recipe.batch // 2
    decoder = model.decoder.train()

    def loss(step: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(step + 3 * 10**6)
        x = moved(torch.cat([_drawn(seen, recipe.batch - half, draw), _drawn(more, half, draw)]), draw).to(device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                z = source.encode(x).latent_dist.mean.float()
            y = decoder(z + noise * torch.randn(z.shape, generator=draw).to(device)).float()
        return decibels(y, x)

    fit("decoder", decoder, loss, recipe, folder, hidden=lambda name: "conv_in" not in name and "conv_out" not in name)
    return model.eval()
