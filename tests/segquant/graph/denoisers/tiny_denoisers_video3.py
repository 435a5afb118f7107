"""Tiny configurations: Kandinsky's transformers and Cosmos 3."""

from __future__ import annotations

import torch

from tests.segquant.graph.denoisers.tiny_denoisers import Example, Table, r
from tests.segquant.graph.denoisers.tiny_denoisers_video import STEP

KANDINSKY = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 12,
    "in_text_dim2": 8,
    "time_dim": 16,
    "model_dim": 32,
    "ff_dim": 48,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
    "axes_dims": (4, 6, 6),
}


def _kandinsky5() -> Example:
    return KANDINSKY, {
        "hidden_states": r(1, 2, 8, 8, 4),
        "encoder_hidden_states": r(1, 5, 12),
        "timestep": STEP,
        "pooled_projections": r(1, 8),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(5),
    }


def _kandinsky6() -> Example:
    config = KANDINSKY | {
        "visual_cond": False,
        "in_audio_dim": 6,
        "out_audio_dim": 6,
        "model_dim_a": 16,
        "ff_dim_a": 24,
        "axes_dims_a": (4, 6, 6),
    }
    return config, {
        "hidden_states": r(1, 2, 8, 8, 4),
        "encoder_hidden_states": r(1, 5, 12),
        "pooled_projections": r(1, 8),
        "timestep": STEP,
        "audio_hidden_states": r(1, 3, 6),
    }


def _kandinsky6_sr() -> Example:
    config = {
        "in_visual_dim": 4,  # beside 4 of a condition and a mask
        "out_visual_dim": 6,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 48,
        "num_visual_blocks": 1,
        "axes_dims": (4, 6, 6),
        "nabla_window": (1, 1, 1),
    }
    return config, {"hidden_states": r(1, 1, 16, 16, 9), "timestep": STEP}


def _cosmos3() -> Example:
    config = {
        "head_dim": 6,
        "hidden_act": "relu2",
        "hidden_size": 12,
        "intermediate_size": 24,
        "latent_channel": 2,
        "latent_patch_size": 1,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "patch_latent_dim": 2,
        "rope_axes_dim": [1, 1, 1],
        "vocab_size": 32,
    }
    seen = torch.arange(2, 6)
    return config, {
        "input_ids": torch.tensor([1, 2]),
        "text_indexes": torch.tensor([0, 1]),
        "position_ids": torch.zeros(3, 6, dtype=torch.long),
        "und_len": 2,
        "sequence_length": 6,
        "vision_tokens": [r(1, 2, 1, 2, 2)],
        "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": seen,
        "vision_mse_loss_indexes": seen,
        "vision_timesteps": torch.ones(4),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


VIDEO3: Table = {
    "Cosmos3OmniTransformer": _cosmos3,
    "Kandinsky5Transformer3DModel": _kandinsky5,
    "Kandinsky6SRTransformer3DModel": _kandinsky6_sr,
    "Kandinsky6Transformer3DModel": _kandinsky6,
}
