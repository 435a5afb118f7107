"""Tiny configurations: transformers that make pictures, A to J."""

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

T1 = torch.tensor([0.5])


def _bria_fibo2() -> Example:
    config = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "cap_feat_dim": 12,
        "injection_layer_ids": (1,),
        "perceiver_num_layers": 1,
        "min_num_gist_tokens": 2,
        "max_num_gist_tokens": 4,
        "gist_step": 1,
        "gist_min_text_len": 2,
        "gist_max_text_len": 8,
        "axes_dims": (8, 4, 4),
        "axes_lens": (32, 16, 16),
    }
    return config, {
        "hidden_states": r(2, 4, 4, 4),
        "timestep": FRACTIONS,
        "encoder_hidden_states": r(2, 2, 5, 12),
    }


def _auraflow() -> Example:
    config = {
        "sample_size": 8,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        **HEADS,
        "caption_projection_dim": 16,
        "joint_attention_dim": 12,
        "pos_embed_max_size": 16,
    }
    return config, {
        **latents_and_words(),
        "timestep": FRACTIONS,
    }


def _cogview(heads: int, head_dim: int, condition: int) -> Example:
    config = {
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": head_dim,
        "num_attention_heads": heads,
        "out_channels": 4,
        "text_embed_dim": 12,
        "time_embed_dim": 8,
        "condition_dim": condition,
        "pos_embed_max_size": 8,
        "sample_size": 8,
    }
    sizes = torch.tensor([[64.0, 64.0]] * 2)
    return config, {
        **latents_and_words(),
        "timestep": STEPS,
        "original_size": sizes,
        "target_size": sizes,
        "crop_coords": torch.zeros(2, 2),
    }


def _dit() -> Example:
    config = {
        **HEADS,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 1,
        "sample_size": 8,
        "num_embeds_ada_norm": 10,
    }
    return config, {"hidden_states": r(2, 4, 8, 8), "timestep": STEPS.long(), "class_labels": torch.tensor([1, 2])}


def _dreamlite() -> Example:
    config = {
        **HEADS,
        "in_channels": 16,
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
        "use_linear_projection": True,
    }
    return config, {"hidden_states": r(2, 16, 4, 4), "encoder_hidden_states": r(2, 5, 12)}


def _ernie() -> Example:
    config = {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "num_layers": 1,
        "ffn_hidden_size": 24,
        "in_channels": 8,
        "out_channels": 8,
        "text_in_dim": 12,
        "rope_axes_dim": (8, 4, 4),
    }
    return config, {
        "hidden_states": r(2, 8, 4, 4),
        "timestep": STEPS,
        "text_bth": r(2, 5, 12),
        "text_lens": torch.tensor([5, 4]),
    }


def _glm_image() -> Example:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        **HEADS,
        "text_embed_dim": 12,
        "time_embed_dim": 16,
        "condition_dim": 8,
        "prior_vq_quantizer_codebook_size": 16,
    }
    return config, {
        **latents_and_words(),
        "prior_token_id": torch.randint(0, 16, (2, 16)),
        "prior_token_drop": torch.zeros(2, 16, dtype=torch.bool),
        "timestep": STEPS,
        "target_size": torch.tensor([[64.0, 64.0]] * 2),
        "crop_coords": torch.zeros(2, 2),
    }


def _hidream() -> Example:
    config = {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        **HEADS,
        "caption_channels": [8, 4],
        "text_emb_dim": 8,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (32, 32),
        "llama_layers": (0, 1),
    }
    return config, {
        "hidden_states": r(2, 4, 16, 16),
        "encoder_hidden_states_t5": r(2, 5, 8),
        "encoder_hidden_states_llama3": r(2, 2, 5, 4),
        "pooled_embeds": r(2, 8),
        "timesteps": STEPS,
    }


def hunyuan_dit_inputs() -> dict[str, object]:
    return {
        "hidden_states": r(2, 4, 8, 8),
        "timestep": STEPS,
        "encoder_hidden_states": r(2, 4, 12),
        "text_embedding_mask": torch.ones(2, 4),
        "encoder_hidden_states_t5": r(2, 3, 16),
        "text_embedding_mask_t5": torch.ones(2, 3),
        "image_meta_size": torch.tensor([[64.0, 64.0, 64.0, 64.0, 0.0, 0.0]] * 2),
        "style": torch.zeros(2, dtype=torch.long),
        "image_rotary_emb": [torch.ones(16, 8), torch.zeros(16, 8)],
    }


HUNYUAN_DIT = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    **HEADS,
    "hidden_size": 16,
    "cross_attention_dim": 12,
    "cross_attention_dim_t5": 16,  # of eight heads
    "pooled_projection_dim": 4,
    "text_len": 4,
    "text_len_t5": 3,
}


def _hunyuan_image() -> Example:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        **HEADS,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 12,
        "rope_axes_dim": (4, 4),
    }
    return config, {
        "hidden_states": r(2, 4, 4, 4),
        "timestep": STEPS,
        "encoder_hidden_states": r(2, 5, 12),
        "encoder_attention_mask": torch.ones(2, 5),
    }


def _ideogram() -> Example:
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "adaln_dim": 12,
        "llm_features_dim": 20,
        "mrope_section": (2, 1, 1),
    }
    places = torch.zeros(1, 8, 3, dtype=torch.long)
    places[0, :4] = torch.arange(4)[:, None]
    places[0, 4:] = 65536 + grid(2, 2).long()  # where pictures begin
    return config, {
        "hidden_states": r(1, 8, 16),
        "timestep": T1,
        "encoder_hidden_states": r(1, 8, 20),
        "position_ids": places,
        "segment_ids": torch.ones(1, 8, dtype=torch.long),
        "indicator": torch.tensor([[3, 3, 3, 3, 2, 2, 2, 2]]),  # text, picture
    }


JOY = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 12,
    "num_layers": 1,
    "rope_dim_list": [4, 6, 6],
}


def _joy() -> Example:
    return JOY, {"hidden_states": r(1, 4, 1, 4, 4), "timestep": T1, "encoder_hidden_states": r(1, 5, 12)}


def _joy_plus() -> Example:
    inputs = {"hidden_states": r(1, 2, 4, 1, 2, 2), "timestep": T1, "encoder_hidden_states": r(1, 5, 12)}
    return JOY, inputs | {"shape_list": [[(1, 1, 1), (1, 1, 1)]]}


IMAGE: Table = {
    "AuraFlowTransformer2DModel": _auraflow,
    "BriaFibo2Transformer2DModel": _bria_fibo2,
    "CogView3PlusTransformer2DModel": lambda: _cogview(2, 8, 2),
    "CogView4Transformer2DModel": lambda: _cogview(2, 8, 4),
    "DiTTransformer2DModel": _dit,
    "DreamLiteTransformer2DModel": _dreamlite,
    "ErnieImageTransformer2DModel": _ernie,
    "GlmImageTransformer2DModel": _glm_image,
    "HiDreamImageTransformer2DModel": _hidream,
    "HunyuanDiT2DModel": lambda: (HUNYUAN_DIT | {"num_layers": 2}, hunyuan_dit_inputs()),
    "HunyuanImageTransformer2DModel": _hunyuan_image,
    "Ideogram4Transformer2DModel": _ideogram,
    "JoyImageEditPlusTransformer3DModel": _joy_plus,
    "JoyImageEditTransformer3DModel": _joy,
}
