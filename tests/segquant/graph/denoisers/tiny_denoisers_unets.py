"""Tiny configurations: UNets, U-ViT and motion modules."""

from __future__ import annotations

import torch

from tests.segquant.graph.denoisers.tiny_denoisers import FRACTIONS, Example, Table, r

STEP = torch.tensor([500])
UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 12,
}


def blocks(down: str, plain: str = "") -> dict[str, object]:
    """A plain block and one with cross-attention: names with Down in them, those on the way up likewise."""
    plain = plain or down.replace("CrossAttn", "")
    names = (plain, down)
    return {
        "down_block_types": names,
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(names)),
    }


def sample(*size: int) -> dict[str, object]:
    return {"sample": r(2, 4, *size), "timestep": STEP, "encoder_hidden_states": r(2, 5, 12)}


SDXL_ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
}


def added() -> dict[str, object]:
    return {"added_cond_kwargs": {"text_embeds": r(2, 16), "time_ids": r(2, 6)}}


def _sdxl() -> Example:
    config = UNET | blocks("CrossAttnDownBlock2D") | SDXL_ADDED
    return config | {"attention_head_dim": (2, 4), "use_linear_projection": True}, sample(8, 8) | added()


def _dreamlite() -> Example:
    config = UNET | {
        "block_out_channels": (16, 16, 32),
        "down_block_types": (
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D",
        ),
        "attention_head_dim": 8,
        "ff_mult": 2,
    }
    return config, sample(8, 8)


def _i2vgen() -> Example:
    config = UNET | blocks("CrossAttnDownBlock3D") | {"num_attention_heads": 8, "attention_head_dim": 8}
    return config, sample(2, 8, 8) | {
        "fps": torch.tensor([16, 16]),
        "image_latents": r(2, 4, 2, 8, 8),
        "image_embeddings": r(2, 12),
    }


def _kandinsky3() -> Example:
    config = {
        "in_channels": 4,
        "time_embedding_dim": 16,
        "groups": 4,
        "attention_head_dim": 8,
        "layers_per_block": 2,
        "block_out_channels": (16, 32),
        "cross_attention_dim": 16,
        "encoder_hid_dim": 12,
    }
    return config, sample(8, 8) | {"encoder_attention_mask": torch.ones(2, 5)}


def _cascade() -> Example:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "timestep_ratio_embedding_dim": 8,
        "conditioning_dim": 16,
        "block_out_channels": (16, 32),
        "num_attention_heads": (2, 4),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "clip_text_in_channels": 10,
        "clip_text_pooled_in_channels": 12,
        "clip_image_in_channels": 14,
        "dropout": (0.1, 0.1),
    }
    return config, {
        "sample": r(2, 4, 8, 8),
        "timestep_ratio": FRACTIONS,
        "clip_text_pooled": r(2, 1, 12),
        "clip_text": r(2, 5, 10),
        "clip_img": r(2, 1, 14),
    }


def _unet1d() -> Example:
    config = {
        "block_out_channels": (8, 16),
        "in_channels": 6,
        "out_channels": 6,
        "time_embedding_type": "positional",
        "use_timestep_embedding": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1.0,
        "out_block_type": "OutConv1DBlock",
        "mid_block_type": "MidResTemporalBlock1D",
        "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"),
        "up_block_types": ("UpResnetBlock1D",),
        "act_fn": "swish",
    }
    return config, {"sample": r(2, 6, 16), "timestep": torch.tensor([10, 900])}


def _unet2d() -> Example:
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "layers_per_block": 1,
    }
    return config, {"sample": r(2, 3, 8, 8), "timestep": STEP}


def _motion() -> Example:
    config = UNET | blocks("CrossAttnDownBlockMotion", "DownBlockMotion")
    config |= {"num_attention_heads": 2, "motion_num_attention_heads": 2}
    return config, sample(2, 8, 8) | {"encoder_hidden_states": r(4, 5, 12)}


def _spatio_temporal() -> Example:
    config = UNET | blocks("CrossAttnDownBlockSpatioTemporal")
    config.pop("norm_num_groups")  # fixed at 32 in its blocks
    config |= {
        "block_out_channels": (32, 64),
        "num_attention_heads": 2,
        "projection_class_embeddings_input_dim": 24,
        "addition_time_embed_dim": 8,
    }
    return config, {
        "sample": r(2, 2, 8, 8, 8),
        "timestep": STEP,
        "encoder_hidden_states": r(2, 1, 12),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]] * 2),
    }


def _uvit() -> Example:
    config = {
        "hidden_size": 16,
        "cond_embed_dim": 10,
        "micro_cond_encode_dim": 4,
        "micro_cond_embed_dim": 20,
        "encoder_hidden_size": 12,
        "vocab_size": 20,
        "codebook_size": 16,
        "in_channels": 16,
        "block_out_channels": 16,
        "num_res_blocks": 1,
        "downsample": True,
        "upsample": True,
        "block_num_heads": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "sample_size": 8,
    }
    return config, {
        "input_ids": torch.randint(0, 16, (2, 8, 8)),
        "encoder_hidden_states": r(2, 5, 12),
        "pooled_text_emb": r(2, 10),
        "micro_conds": r(2, 5),
    }


def _audioldm2() -> Example:
    config = UNET | blocks("CrossAttnDownBlock2D") | {"attention_head_dim": 2}
    return config, sample(8, 8)


UNETS: Table = {
    "AudioLDM2UNet2DConditionModel": _audioldm2,
    "DreamLiteUNetModel": _dreamlite,
    "I2VGenXLUNet": _i2vgen,
    "Kandinsky3UNet": _kandinsky3,
    "StableCascadeUNet": _cascade,
    "UNet1DModel": _unet1d,
    "UNet2DConditionModel": _sdxl,
    "UNet2DModel": _unet2d,
    "UNet3DConditionModel": lambda: (
        UNET | blocks("CrossAttnDownBlock3D") | {"attention_head_dim": 8},
        sample(2, 8, 8),
    ),
    "UNetMotionModel": _motion,
    "UNetSpatioTemporalConditionModel": _spatio_temporal,
    "UVit2DModel": _uvit,
}
