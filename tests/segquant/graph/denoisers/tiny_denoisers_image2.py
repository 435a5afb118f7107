"""Tiny configurations: transformers that make pictures, K to Z, and a protein."""

from __future__ import annotations

import torch

from tests.segquant.graph.denoisers.tiny_denoisers import (
    FRACTIONS,
    HEADS,
    STEPS,
    Example,
    Table,
    grid,
    latents_and_words,
    r,
)


def _krea() -> Example:
    config = {
        "in_channels": 8,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "timestep_embed_dim": 8,
        "text_hidden_dim": 16,
        "num_text_layers": 3,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 1,
        "text_intermediate_size": 20,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 2, 2),
    }
    return config, {
        "hidden_states": r(1, 6, 8),
        "encoder_hidden_states": r(1, 4, 3, 16),
        "timestep": torch.tensor([0.5]),
        "position_ids": torch.cat([torch.zeros(4, 3), grid(2, 3)]),
        "encoder_attention_mask": torch.tensor([[True, True, True, False]]),
    }


def _lumina() -> Example:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 16,
        "learn_sigma": False,
        "cross_attention_dim": 12,
    }
    angles = torch.randn(16, 16, 4)
    return config, {
        "hidden_states": r(2, 4, 8, 8),
        "timestep": FRACTIONS,
        "encoder_hidden_states": r(2, 5, 12),
        "encoder_mask": torch.ones(2, 5),
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        "cross_attention_kwargs": {},
    }


def _lumina2() -> Example:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 2,
        "axes_dim_rope": (4, 2, 2),
        "axes_lens": (32, 32, 32),
        "cap_feat_dim": 12,
    }
    return config, {
        "hidden_states": r(2, 4, 8, 8),
        "timestep": FRACTIONS,
        "encoder_hidden_states": r(2, 5, 12),
        "encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool),
    }


def qwen(**changes: object) -> Example:
    config = {
        "in_channels": 8,
        "out_channels": 2,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "axes_dims_rope": (8, 4, 4),
    }
    return {**config, **changes}, {
        "hidden_states": r(1, 16, 8),
        "encoder_hidden_states": r(1, 5, 12),
        "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.long),
        "timestep": torch.tensor([1.0]),
        "img_shapes": [(1, 4, 4)],
    }


def _nucleus() -> Example:
    return qwen(
        num_layers=2,
        mlp_ratio=6.0,  # two thirds of it rounded down to 128 channels
        capacity_factors=[2.0, 2.0],
        num_experts=2,
        moe_intermediate_dim=12,
        dense_moe_strategy="leave_first_block_dense",
    )


def _qwen21() -> Example:
    config = {
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "context_in_dim": 12,
        "axes_dims_rope": (8, 4, 4),
    }
    return config, {
        "hidden_states": r(1, 16, 8),
        "encoder_hidden_states": r(1, 5, 12),
        "timestep": torch.tensor([1.0]),
        "img_shapes": [[(1, 4, 4)]],
        "img_mask": torch.tensor([[False] * 5 + [True] * 4]),  # a picture's slot stands for four tokens
    }


def _omnigen() -> Example:
    config = {
        "in_channels": 4,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "num_layers": 1,
        "pad_token_id": 0,
        "vocab_size": 100,
        "time_step_dim": 4,
        "rope_scaling": {"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]},
    }
    length = 20 + 1 + 16
    return config, {
        "hidden_states": r(2, 4, 8, 8),
        "timestep": FRACTIONS,
        "input_ids": torch.randint(0, 10, (2, 20)),
        "input_img_latents": [r(1, 4, 8, 8)],
        "input_image_sizes": {0: [[0, 16]]},
        "attention_mask": torch.ones(2, length, length),
        "position_ids": torch.arange(length).expand(2, -1),
    }


def _prx() -> Example:
    config = {
        "in_channels": 4,
        "context_in_dim": 12,
        "hidden_size": 16,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "axes_dim": [4, 4],
    }
    return config, {
        "hidden_states": r(2, 4, 8, 8),
        "timestep": FRACTIONS,
        "encoder_hidden_states": r(2, 5, 12),
        "attention_mask": torch.ones(2, 5, dtype=torch.bool),
    }


def _pixart() -> Example:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,  # the width is cut in three: height, width, ratio
        "num_layers": 1,
        "cross_attention_dim": 24,
        "sample_size": 8,
        "caption_channels": 12,
        "use_additional_conditions": True,
    }
    return config, {
        **latents_and_words(),
        "timestep": STEPS,
        "added_cond_kwargs": {"resolution": torch.tensor([[64.0, 64.0]] * 2), "aspect_ratio": torch.ones(2, 1)},
    }


SANA = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    **HEADS,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 12,
}


def sana_inputs(*size: int) -> dict[str, object]:
    return {"hidden_states": r(2, 4, *size), "encoder_hidden_states": r(2, 5, 12), "timestep": STEPS}


SD3 = {
    "sample_size": 8,
    "in_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 16,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 8,
}


def sd3_inputs() -> dict[str, object]:
    return {
        "hidden_states": r(2, 4, 8, 8),
        "encoder_hidden_states": r(2, 5, 16),
        "pooled_projections": r(2, 12),
        "timestep": STEPS,
    }


def _sd3() -> Example:
    config = {"out_channels": 4, "num_layers": 2, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    return SD3 | config, sd3_inputs()


def _transformer2d() -> Example:
    config = {
        **HEADS,
        "in_channels": 16,
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
    }
    return config, {"hidden_states": r(2, 16, 4, 4), "encoder_hidden_states": r(2, 5, 12)}


def z_image_inputs() -> dict[str, object]:
    pictures, captions = [r(4, 1, 8, 8), r(4, 1, 8, 8)], [r(5, 12), r(7, 12)]
    return {"x": pictures, "t": FRACTIONS, "cap_feats": captions}


def _z_image() -> Example:
    config = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 12,
        "axes_dims": [8, 4, 4],
        "axes_lens": [64, 32, 32],
    }
    return config, z_image_inputs()


IMAGE2: Table = {
    "Krea2Transformer2DModel": _krea,
    "Lumina2Transformer2DModel": _lumina2,
    "LuminaNextDiT2DModel": _lumina,
    "NucleusMoEImageTransformer2DModel": _nucleus,
    "OmniGenTransformer2DModel": _omnigen,
    "PRXTransformer2DModel": _prx,
    "PixArtTransformer2DModel": _pixart,
    "QwenImage21Transformer2DModel": _qwen21,
    "QwenImageTransformer2DModel": qwen,
    "SD3Transformer2DModel": _sd3,
    "SanaTransformer2DModel": lambda: (
        SANA | {"sample_size": 8, "guidance_embeds": True},
        sana_inputs(8, 8) | {"guidance": torch.tensor([3.0, 3.0])},
    ),
    "Transformer2DModel": _transformer2d,
    "ZImageTransformer2DModel": _z_image,
}
