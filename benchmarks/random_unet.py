"""A small UNet of SDXL's kind with random weights that is as hard to quantize as a trained one, and inputs for it.

See `benchmarks.random_sd3`. Skip connections come from blocks of other sizes, as they do in trained UNets: what is
concatenated differs in scale; and its norms have learnt outlier channels of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from benchmarks.outliers import OUTLIERS, pictures, spoil, words

WORDS = 12
LATENT = 16
"""Latents are 4 × 16 × 16."""


def random_unet(width: int = 128, seed: int = 0, outlier: float = 11) -> UNet2DConditionModel:
    """The model, float32, in eval mode; blocks of `width` and 2 · `width` channels, GEGLU, added conditions.

    `outlier` is how much larger the outlier channels of its norms are. At 11 torchao's W8A8 per token has an error of
    .053, at 16 of .13: how hard such a model is depends on little else.
    """
    with torch.random.fork_rng(devices=[]):
        model = UNet2DConditionModel(
            sample_size=LATENT, in_channels=4, out_channels=4, layers_per_block=2,
            block_out_channels=(width, 2 * width), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            attention_head_dim=(width // 32, width // 16), cross_attention_dim=2 * width, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=6 * 32 + 2 * width,
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                spoil(module, generator)
                module.weight *= 4 if name.endswith("proj_out") else 1  # transformers weigh as much as convolutions
            elif isinstance(module, nn.LayerNorm):
                channels = module.weight.numel()
                few = torch.randperm(channels, generator=generator)[: channels // OUTLIERS]
                module.weight[few] *= outlier
        for index, block in enumerate(model.down_blocks):
            for resnet in block.resnets:
                resnet.conv2.weight *= 3 ** (1 - 2 * index)
    return model.eval()


def unet_inputs(model: UNet2DConditionModel, calls: int, seed: int, batch: int = 2) -> list[dict[str, Any]]:
    """Arguments of `calls` denoiser calls at timesteps spread evenly over a variance-preserving schedule."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.cross_attention_dim
    steps = (torch.randperm(calls, generator=generator) + torch.rand(calls, generator=generator)) / calls
    inputs: list[dict[str, Any]] = []
    for step in steps:
        picture, text = pictures(batch, 4, LATENT, generator), words(batch, WORDS, width, generator)
        noise, angle = torch.randn(picture.shape, generator=generator), step * torch.pi / 2
        added = {
            "text_embeds": torch.randn(batch, width, generator=generator),
            "time_ids": torch.tensor([128.0, 128, 0, 0, 128, 128]).expand(batch, 6),
        }
        inputs.append({
            "sample": angle.cos() * picture + angle.sin() * noise,
            "timestep": (1000 * step).expand(batch),
            "encoder_hidden_states": text,
            "added_cond_kwargs": added,
            "return_dict": False,
        })  # fmt: skip
    return inputs
