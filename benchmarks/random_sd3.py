"""A small SD3 transformer with random weights that is as hard to quantize as a trained one, and inputs for it.

What makes trained denoisers hard, planted on purpose: chunks of an AdaLN linear that differ in size by an order of
magnitude, a few input columns and output channels far larger than the rest, text embeddings with massive channels,
and inputs whose size changes over the sampling steps. Everything is seeded.
"""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from benchmarks.outliers import pictures, spoil, words

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
                spoil(module, generator, width if "norm" in name else None)
    return model.eval()


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
        picture, text = pictures(batch, 4, LATENT, generator), words(batch, WORDS, width, generator)
        noise = torch.randn(picture.shape, generator=generator)
        inputs.append({
            "hidden_states": (1 - step) * picture + step * noise,
            "encoder_hidden_states": text,
            "pooled_projections": torch.randn(batch, width, generator=generator),
            "timestep": (1000 * step).expand(batch),
            "return_dict": False,
        })  # fmt: skip
    return inputs
