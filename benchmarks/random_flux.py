"""A small FLUX transformer with random weights that is as hard to quantize as a trained one, and inputs for it.

See `benchmarks.random_sd3`; besides its double-stream blocks FLUX has single-stream ones, whose last linear takes
attention and GELU outputs side by side, and guidance as an input.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from benchmarks.outliers import pictures, spoil, words

WORDS = 12
LATENT = 16
"""Latents are 4 × 16 × 16, packed into 64 tokens of 16 channels."""


def random_flux(
    double: int = 2, single: int = 4, heads: int = 6, head: int = 64, seed: int = 0
) -> FluxTransformer2DModel:
    """The model, float32, in eval mode; width heads · head (384)."""
    width = heads * head
    with torch.random.fork_rng(devices=[]):
        model = FluxTransformer2DModel(
            in_channels=16, num_layers=double, num_single_layers=single, attention_head_dim=head,
            num_attention_heads=heads, joint_attention_dim=width, pooled_projection_dim=width, guidance_embeds=True,
            axes_dims_rope=(head // 4, 3 * head // 8, 3 * head // 8),
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                spoil(module, generator, width if "norm" in name else None)
    return model.eval()


def flux_inputs(model: FluxTransformer2DModel, calls: int, seed: int, batch: int = 2) -> list[dict[str, Tensor | bool]]:
    """Arguments of `calls` denoiser calls, as `benchmarks.random_sd3.denoiser_inputs` makes them."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.joint_attention_dim
    steps = (torch.randperm(calls, generator=generator) + torch.rand(calls, generator=generator)) / calls
    side = LATENT // 2
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack((torch.zeros_like(rows), rows, columns), -1).flatten(0, 1).float()
    inputs: list[dict[str, Tensor | bool]] = []
    for step in steps:
        picture, text = pictures(batch, 4, LATENT, generator), words(batch, WORDS, width, generator)
        noisy = (1 - step) * picture + step * torch.randn(picture.shape, generator=generator)
        inputs.append({
            "hidden_states": nn.functional.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2),
            "encoder_hidden_states": text,
            "pooled_projections": torch.randn(batch, width, generator=generator),
            "timestep": step.expand(batch),
            "guidance": torch.full((batch,), 3.5),
            "img_ids": places,
            "txt_ids": torch.zeros(WORDS, 3),
            "return_dict": False,
        })  # fmt: skip
    return inputs
