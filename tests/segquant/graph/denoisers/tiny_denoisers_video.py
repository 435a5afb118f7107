"""Tiny configurations: transformers that make videos, A to L."""

from __future__ import annotations

import torch

from tests.segquant.graph.denoisers.tiny_denoisers import HEADS, STEPS, Example, Table, r

STEP = torch.tensor([500.0])


def _allegro() -> Example:
    config = {
        **HEADS,
        "num_layers": 1,
        "cross_attention_dim": 16,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 8,
        "caption_channels": 12,
    }
    return config, {
        "hidden_states": r(2, 4, 2, 8, 8),
        "encoder_hidden_states": r(2, 5, 12),
        "timestep": STEPS.long(),
    }


WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 8,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


def wan_inputs(channels: int = 4, frames: int = 2) -> dict[str, object]:
    return {"hidden_states": r(1, channels, frames, 8, 8), "timestep": STEP, "encoder_hidden_states": r(1, 6, 16)}


def _anyflow(frames: int) -> dict[str, object]:
    return {
        "hidden_states": r(1, frames, 4, 8, 8),
        "timestep": torch.full((1, frames), 500.0),
        "r_timestep": torch.full((1, frames), 250.0),
        "encoder_hidden_states": r(1, 6, 16),
    }


def _cogvideo() -> Example:
    config = {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 6,
        "text_embed_dim": 12,
        "num_layers": 1,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
        "max_text_seq_length": 5,
    }
    return config, {
        "hidden_states": r(2, 2, 4, 8, 8),
        "encoder_hidden_states": r(2, 5, 12),
        "timestep": STEPS.long(),
    }


def _consisid() -> Example:
    config, inputs = _cogvideo()
    face = {
        "cross_attn_interval": 1,
        "is_train_face": True,
        "cross_attn_dim_head": 8,
        "cross_attn_num_heads": 2,
        "LFE_id_dim": 6,
        "LFE_vit_dim": 10,
        "LFE_depth": 5,
        "LFE_dim_head": 8,
        "LFE_num_heads": 2,
        "LFE_num_id_token": 2,
        "LFE_num_querie": 3,
        "LFE_output_dim": 10,  # two thirds of the width
        "LFE_ff_mult": 2,
        "LFE_num_scale": 1,
    }
    return config | face, inputs | {"id_cond": r(2, 6), "id_vit_hidden": [r(2, 4, 10)]}


COSMOS = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "mlp_ratio": 2,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
    "rope_scale": (2.0, 1.0, 1.0),
}


def _cosmos() -> Example:
    config = {"in_channels": 4, "out_channels": 4, "num_layers": 1, "encoder_hidden_states_channels": 16}
    return COSMOS | config, {
        "hidden_states": r(1, 4, 2, 8, 8),
        "timestep": STEP,
        "encoder_hidden_states": r(1, 6, 16),
        "fps": 30,
        "padding_mask": torch.zeros(1, 1, 8, 8),
    }


def _easyanimate() -> Example:
    config = {
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "in_channels": 4,
        "mmdit_layers": 1,
        "num_layers": 1,
        "out_channels": 4,
        "patch_size": 2,
        "sample_height": 8,
        "sample_width": 8,
        "text_embed_dim": 12,
        "time_embed_dim": 8,
    }
    return config, {
        "hidden_states": r(2, 4, 2, 8, 8),
        "timestep": STEPS,
        "encoder_hidden_states": r(2, 5, 12),
    }


def _helios() -> Example:
    config = WAN | {"rope_dim": (4, 4, 4)}
    config.pop("rope_max_seq_len")
    return config, wan_inputs(frames=2) | {
        "indices_hidden_states": torch.ones(1, 2),
        "indices_latents_history_short": torch.ones(1, 1),
        "indices_latents_history_mid": torch.ones(1, 1),
        "indices_latents_history_long": torch.ones(1, 4),
        "latents_history_short": r(1, 4, 1, 8, 8),
        "latents_history_mid": r(1, 4, 1, 8, 8),
        "latents_history_long": r(1, 4, 4, 8, 8),
    }


HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "text_embed_dim": 12,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}


def _hunyuan_inputs(frames: int) -> dict[str, object]:
    return {
        "hidden_states": r(1, 4, frames, 8, 8),
        "timestep": STEP,
        "encoder_hidden_states": r(1, 6, 12),
        "encoder_attention_mask": torch.ones(1, 6),
        "pooled_projections": r(1, 8),
        "guidance": torch.tensor([6.0]),
    }


def _hunyuan15() -> Example:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        **HEADS,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 12,
        "text_embed_2_dim": 8,
        "image_embed_dim": 6,
        "rope_axes_dim": (2, 2, 4),
        "target_size": 16,
        "task_type": "t2v",
    }
    return config, {
        "hidden_states": r(1, 4, 1, 4, 4),
        "timestep": STEP,
        "encoder_hidden_states": r(1, 6, 12),
        "encoder_attention_mask": torch.ones(1, 6),
        "encoder_hidden_states_2": r(1, 4, 8),
        "encoder_attention_mask_2": torch.ones(1, 4),
        "image_embeds": torch.zeros(1, 3, 6),
    }


def _framepack() -> Example:
    config = HUNYUAN | {"has_image_proj": True, "image_proj_dim": 14, "has_clean_x_embedder": True}
    return config, _hunyuan_inputs(3) | {
        "image_embeds": r(1, 5, 14),
        "indices_latents": torch.ones(3),
        "latents_clean": r(1, 4, 2, 8, 8),
        "indices_latents_clean": torch.ones(2),
        "latents_history_2x": r(1, 4, 2, 8, 8),
        "indices_latents_history_2x": torch.ones(2),
        "latents_history_4x": r(1, 4, 8, 8, 8),
        "indices_latents_history_4x": torch.ones(8),
    }


VIDEO: Table = {
    "AllegroTransformer3DModel": _allegro,
    "AnyFlowFARTransformer3DModel": lambda: (
        WAN | {"compressed_patch_size": (1, 4, 4)},
        _anyflow(4) | {"chunk_partition": [2, 2]},
    ),
    "AnyFlowTransformer3DModel": lambda: (WAN, _anyflow(2)),
    "ChronoEditTransformer3DModel": lambda: (WAN, wan_inputs()),
    "CogVideoXTransformer3DModel": _cogvideo,
    "ConsisIDTransformer3DModel": _consisid,
    "CosmosTransformer3DModel": _cosmos,
    "EasyAnimateTransformer3DModel": _easyanimate,
    "HeliosTransformer3DModel": _helios,
    "HunyuanVideo15Transformer3DModel": _hunyuan15,
    "HunyuanVideoFramepackTransformer3DModel": _framepack,
    "HunyuanVideoTransformer3DModel": lambda: (HUNYUAN, _hunyuan_inputs(1)),
}
