"""A small transformer of diffusers, and inputs for it."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor, nn


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=4,
    ).eval()  # fmt: skip


def inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(2, 4, 4, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(2, 3, 32, generator=g).to(dtype),
        "pooled_projections": torch.randn(2, 32, generator=g).to(dtype),
        "timestep": torch.tensor([10.0, 700.0]),
        "return_dict": False,
    }


def out(model: nn.Module, seed: int = 9) -> Tensor:
    with torch.no_grad():
        return model(**inputs(seed, model.dtype))[0]
