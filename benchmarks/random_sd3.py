"""A small SD3 transformer with random weights that is as hard to quantize as a trained one, and inputs for it.

What makes trained denoisers hard, planted on purpose: chunks of an AdaLN linear that differ in size by an order of
magnitude, a few input columns and output channels far larger than the rest, text embeddings with massive channels,
and inputs whose size changes over the sampling steps. Everything is seeded.
"""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

CHUNKS = (0.4, 2.0, 0.6, 0.4, 4.0, 0.8, 0.2, 1.2, 0.4)
"""Sizes of the chunks of an AdaLN linear (shift, scale, gate, …); the last block's context norm has two."""
OUTLIERS = 64
"""One channel in so many is far larger than the others."""
WORDS = 12
LATENT = 16
"""Latents are 4 × 16 × 16, hence 64 image tokens."""


def random_sd3(layers: int = 6, heads: int = 6, head: int = 64, seed: int = 0) -> SD3Transformer2DModel:
    """The model, float32, in eval mode; width heads · head (384)."""
    width = heads * head
    with torch.random.fork_rng(devices=[]):
        model = SD3Transformer2DModel(
            sample_size=LATENT, patch_size=2, in_channels=4, num_layers=layers, attention_head_dim=head,
            num_attention_heads=heads, joint_attention_dim=width, caption_projection_dim=width,
            pooled_projection_dim=width, out_channels=4, pos_embed_max_size=LATENT,
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.pos_embed.proj.weight.normal_(0, 0.3, generator=generator)
        model.pos_embed.proj.bias.normal_(0, 0.1, generator=generator)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                _spoil(module, width, "norm" in name, generator)
    return model.eval()


def _spoil(linear: nn.Linear, width: int, adaptive: bool, generator: torch.Generator) -> None:
    """Unit gain, then uneven chunks (AdaLN) or outlier columns and outlier outputs (everything else)."""
    linear.weight.normal_(0, linear.in_features**-0.5, generator=generator)
    linear.bias.normal_(0, 0.1, generator=generator)
    if adaptive:
        sizes = torch.tensor(CHUNKS[: linear.out_features // width])
        linear.weight.mul_(sizes.repeat_interleave(width)[:, None])
        return
    few = max(1, linear.in_features // OUTLIERS)
    linear.weight[:, torch.randperm(linear.in_features, generator=generator)[:few]] *= 3
    few = max(1, linear.out_features // OUTLIERS)
    outputs = torch.randperm(linear.out_features, generator=generator)[:few]
    linear.bias[outputs] += 4 * torch.randn(len(outputs), generator=generator).sign()


def denoiser_inputs(
    model: SD3Transformer2DModel, calls: int, seed: int, batch: int = 2
) -> list[dict[str, Tensor | bool]]:
    """Arguments of `calls` denoiser calls at timesteps spread evenly over the schedule, in random order.

    Latents are flow-matching mixtures (1 − t) · picture + t · noise of smooth pictures; all items of a call share
    t, as they do in sampling with guidance. Other seeds are other pictures, noise and words: fresh inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    width = model.config.joint_attention_dim
    steps = (torch.randperm(calls, generator=generator) + torch.rand(calls, generator=generator)) / calls
    inputs: list[dict[str, Tensor | bool]] = []
    for step in steps:
        coarse = torch.randn(batch, 4, LATENT // 4, LATENT // 4, generator=generator)
        picture = nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") * 1.5
        words = torch.randn(batch, WORDS, width, generator=generator)
        words[..., : width // 48] *= 8
        noise = torch.randn(picture.shape, generator=generator)
        inputs.append({
            "hidden_states": (1 - step) * picture + step * noise,
            "encoder_hidden_states": words,
            "pooled_projections": torch.randn(batch, width, generator=generator),
            "timestep": (1000 * step).expand(batch),
            "return_dict": False,
        })  # fmt: skip
    return inputs
