"""Tiny configurations: transformers that make videos, L to W, and sound."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

from tests.segquant.graph.denoisers.tiny_denoisers import HEADS, STEPS, Example, Table, r
from tests.segquant.graph.denoisers.tiny_denoisers_image2 import SANA, sana_inputs
from tests.segquant.graph.denoisers.tiny_denoisers_video import STEP, WAN, wan_inputs


def _latte() -> Example:
    config = {
        **HEADS,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 1,
        "cross_attention_dim": 16,
        "sample_size": 8,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "caption_channels": 12,
        "video_length": 2,
    }
    return config, {
        "hidden_states": r(2, 4, 2, 8, 8),
        "timestep": STEPS.long(),
        "encoder_hidden_states": r(2, 5, 12),
    }


def _ltx() -> Example:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        **HEADS,
        "cross_attention_dim": 16,
        "num_layers": 1,
        "caption_channels": 12,
    }
    return config, {
        "hidden_states": r(2, 2 * 4 * 4, 4),
        "encoder_hidden_states": r(2, 5, 12),
        "timestep": STEPS.long(),
        "encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


LTX2 = {
    "in_channels": 4,
    "out_channels": 4,
    **HEADS,
    "cross_attention_dim": 16,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "num_layers": 1,
    "caption_channels": 12,
}


def _ltx2() -> Example:
    return LTX2 | {"rope_double_precision": False}, {
        "hidden_states": r(2, 2 * 4 * 4, 4),
        "audio_hidden_states": r(2, 9, 4),
        "encoder_hidden_states": r(2, 5, 12),
        "audio_encoder_hidden_states": r(2, 5, 12),
        "timestep": STEPS,
        "encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "audio_num_frames": 9,
        "fps": 25.0,
    }


def _sana_wm_refiner() -> Example:
    return LTX2, {
        "hidden_states": r(2, 2 * 4 * 4, 4),
        "encoder_hidden_states": r(2, 5, 12),
        "timestep": STEPS,
        "video_rotary_emb": (r(2, 32, 16), r(2, 32, 16)),
        "encoder_attention_mask": torch.ones(2, 5),
    }


def _sana_wm() -> Example:
    config = {
        "in_channels": 4,
        "num_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 2,
        "linear_head_dim": 12,
        "softmax_every_n": 2,
        "chunk_plucker_post_attn_blocks": 1,
        "chunk_plucker_channels": 6,
        "image_size": 64,
        "caption_channels": 12,
        "mixed_precision": "fp32",
    }
    return config, {
        "hidden_states": r(1, 4, 2, 4, 4),
        "timestep": torch.full((1, 1, 2), 500.0),
        "encoder_hidden_states": r(1, 1, 5, 12),
        "mask": torch.ones(1, 1, 1, 5),
    }


def _minimax_h3() -> Example:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 24,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "ffn_dim": 20,
        "in_channels": 4,
        "audio_in_channels": 6,
        "text_dim": 8,
        "freq_dim": 8,
        "time_embed_hidden_dim": 24,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    }
    text, audio, video = torch.arange(4), torch.arange(4, 10), torch.arange(10, 18)
    places = torch.zeros(18, 3)
    places[:, 0] = torch.arange(18)
    return config, {
        "hidden_states": r(2, 8, 16),
        "audio_hidden_states": r(2, 6, 6),
        "encoder_hidden_states": r(2, 4, 8),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": torch.tensor([0] * 4 + [1] * 6 + [0] * 8),
        "token_tags": torch.tensor([1] * 4 + [2] * 6 + [0] * 8),
        "position_ids": places,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text,
    }


def _mochi() -> Example:
    config = {
        **HEADS,
        "num_layers": 2,
        "pooled_projection_dim": 16,
        "in_channels": 4,
        "text_embed_dim": 16,  # pooled by eight heads
        "time_embed_dim": 4,
        "max_sequence_length": 8,
    }
    return config, {
        "hidden_states": r(2, 4, 2, 8, 8),
        "encoder_hidden_states": r(2, 5, 16),
        "timestep": STEPS,
        "encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool),
    }


def _motif() -> Example:
    config = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_single_layers": 1,
        "patch_size": 2,
        "text_embed_dim": 12,
        "rope_axes_dim": (4, 4, 4),
        "enable_text_cross_attention_dual": True,
    }
    return config, {"hidden_states": r(1, 9, 2, 8, 8), "timestep": STEP, "encoder_hidden_states": r(1, 6, 12)}


def _sana_video() -> Example:
    config = SANA | {
        "num_cross_attention_heads": 2,
        "attention_head_dim": 12,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "sample_size": 8,
        "rope_max_seq_len": 32,
    }
    return config, sana_inputs(2, 8, 8)


def _wan_animate() -> Example:
    config = WAN | {
        "in_channels": 12,
        "latent_channels": 4,
        "image_dim": 14,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 16,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 1,
    }
    return config, wan_inputs(12, 3) | {
        "encoder_hidden_states_image": r(1, 5, 14),
        "pose_hidden_states": r(1, 4, 2, 8, 8),
        "face_pixel_values": r(1, 3, 5, 16, 16),
    }


def _wan_animate2() -> Example:
    config = {
        "text_len": 6,
        "in_dim": 12,
        "dim": 32,
        "ffn_dim": 48,
        "freq_dim": 8,
        "text_dim": 10,
        "out_dim": 4,
        "num_heads": 2,
        "num_layers": 1,
    }
    return config, {
        "hidden_states": [r(4, 2, 4, 4)],
        "timestep": torch.tensor([1.0]),
        "encoder_hidden_states": [r(5, 10)],
        "condition_latents": [r(8, 2, 4, 4)],
        "encoder_hidden_states_image": r(1, 4, 1280),  # the width of CLIP's picture tokens is fixed
        "kv_cache": WanAnimate2KVCache(1),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


def _wan_vace() -> Example:
    config = WAN | {"num_layers": 2, "vace_layers": [0], "vace_in_channels": 12}
    return config, wan_inputs() | {"control_hidden_states": r(1, 12, 2, 8, 8)}


VIDEO2: Table = {
    "LTX2VideoTransformer3DModel": _ltx2,
    "LTXVideoTransformer3DModel": _ltx,
    "LatteTransformer3DModel": _latte,
    "MiniMaxH3Transformer3DModel": _minimax_h3,
    "MochiTransformer3DModel": _mochi,
    "MotifVideoTransformer3DModel": _motif,
    "SanaVideoTransformer3DModel": _sana_video,
    "SanaWMLTX2RefinerTransformer3DModel": _sana_wm_refiner,
    "SanaWMTransformer3DModel": _sana_wm,
    "SkyReelsV2Transformer3DModel": lambda: (WAN, wan_inputs()),
    "WanAnimate2Transformer3DModel": _wan_animate2,
    "WanAnimateTransformer3DModel": _wan_animate,
    "WanTransformer3DModel": lambda: (WAN, wan_inputs()),
    "WanVACETransformer3DModel": _wan_vace,
}
