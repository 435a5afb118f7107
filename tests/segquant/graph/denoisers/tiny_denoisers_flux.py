"""Tiny configurations: FLUX and the classes that take its arguments."""

from __future__ import annotations

import torch

from tests.segquant.graph.denoisers.tiny_denoisers import FRACTIONS, Example, Table, grid, r


def flow_tokens(**config: object) -> Example:
    """Six tokens of 4 channels on a 2 × 3 grid, five words of width 16, two heads of 16."""
    shape = {
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (4, 4, 8),
    }
    return {**shape, **config}, {
        "hidden_states": r(2, 6, 4),
        "encoder_hidden_states": r(2, 5, 16),
        "timestep": FRACTIONS,
        "img_ids": grid(2, 3),
        "txt_ids": torch.zeros(5, 3),
    }


def _flux() -> Example:
    config, inputs = flow_tokens(pooled_projection_dim=16, guidance_embeds=True)
    return config, inputs | {"pooled_projections": r(2, 16), "guidance": torch.tensor([3.0, 3.0])}


def _flux2() -> Example:
    config, inputs = flow_tokens(timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4))
    ids = {"img_ids": grid(2, 3, axes=4).expand(2, -1, -1), "txt_ids": torch.zeros(2, 5, 4)}
    return config, inputs | ids | {"guidance": torch.tensor([3.0, 3.0])}


def _flux3() -> Example:
    config, inputs = flow_tokens(timestep_channels=16, axes_dims_rope=(4, 4, 4, 4), cond_in_channels=6)
    ids = {"img_ids": grid(2, 3, axes=4), "txt_ids": torch.zeros(5, 4), "image_cond_ids": torch.ones(3, 4)}
    return config, inputs | ids | {"image_cond_hidden_states": r(2, 3, 6)}


def _bria(**more: object) -> Example:
    return flow_tokens(attention_head_dim=8, axes_dims_rope=(0, 4, 4), **more)


def _bria_fibo() -> Example:
    config, inputs = _bria(text_encoder_dim=8)
    return config, inputs | {"text_encoder_layers": [r(2, 5, 8), r(2, 5, 8)]}


FLUX: Table = {
    "BriaFiboTransformer2DModel": _bria_fibo,
    "BriaTransformer2DModel": _bria,
    "ChromaTransformer2DModel": lambda: flow_tokens(
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1
    ),
    "Flux2Transformer2DModel": _flux2,
    "Flux3Transformer2DModel": _flux3,
    "FluxTransformer2DModel": _flux,
    "LongCatImageTransformer2DModel": lambda: flow_tokens(pooled_projection_dim=12),
    "OvisImageTransformer2DModel": lambda: flow_tokens(out_channels=4),
}
