"""A random SD3 transformer of the kind that is hard to quantize: uneven AdaLN chunks, outlier channels."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

HEAD = 16
CHUNKS = torch.tensor([0.2, 1.0, 0.3, 0.2, 2.0, 0.4, 0.1, 0.6, 0.2])


def random_sd3(layers: int = 2, heads: int = 4, seed: int = 0) -> SD3Transformer2DModel:
    """Weights of unit gain; AdaLN chunks of different size, some input columns and some biases far larger."""
    width = heads * HEAD
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=layers, attention_head_dim=HEAD,
        num_attention_heads=heads, joint_attention_dim=width, caption_projection_dim=width,
        pooled_projection_dim=width, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.pos_embed.proj.weight.normal_(0, 0.3, generator=g)
        model.pos_embed.proj.bias.normal_(0, 0.1, generator=g)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                _spoil(module, width, "norm" in name, g)
    return model.eval()


def _spoil(linear: nn.Linear, width: int, adaptive: bool, g: torch.Generator) -> None:
    linear.weight.normal_(0, linear.in_features**-0.5, generator=g)
    linear.bias.normal_(0, 0.1, generator=g)
    if adaptive:
        linear.weight.mul_(CHUNKS[: linear.out_features // width].repeat_interleave(width)[:, None])
        return
    linear.weight[:, torch.randperm(linear.in_features, generator=g)[: linear.in_features // 32]] *= 3
    outliers = torch.randperm(linear.out_features, generator=g)[: linear.out_features // 32]
    linear.bias[outliers] += 4 * torch.randn(len(outliers), generator=g).sign()


def sd3_batches(model: SD3Transformer2DModel, count: int, seed: int) -> list[dict[str, Tensor | bool]]:
    """Denoiser inputs at random timesteps, two samples a batch."""
    g = torch.Generator().manual_seed(seed)
    width = model.config.joint_attention_dim
    found: list[dict[str, Tensor | bool]] = []
    for _ in range(count):
        words = torch.randn(2, 7, width, generator=g)
        words[..., :2] *= 8
        found.append({
            "hidden_states": torch.randn(2, 4, 8, 8, generator=g),
            "encoder_hidden_states": words,
            "pooled_projections": torch.randn(2, width, generator=g),
            "timestep": torch.rand(1, generator=g).expand(2) * 1000,
            "return_dict": False,
        })  # fmt: skip
    return found
