"""Tiny configurations: transformers over sound, time and proteins, and the models in diffusers' pipelines."""

from __future__ import annotations

import torch

from tests.segquant.graph.denoisers.tiny_denoisers import FRACTIONS, HEADS, STEPS, Example, Table, r


def _ace_step() -> Example:
    config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "in_channels": 24,
        "audio_acoustic_hidden_dim": 8,
        "sliding_window": 4,
    }
    return config, {
        "hidden_states": r(2, 8, 8),
        "timestep": FRACTIONS,
        "timestep_r": FRACTIONS,
        "encoder_hidden_states": r(2, 5, 32),
        "context_latents": r(2, 8, 16),
    }


def _longcat_audio() -> Example:
    config = {"dit_dim": 32, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 12, "latent_dim": 8}
    return config, {
        "hidden_states": r(2, 8, 8),
        "encoder_hidden_states": r(2, 5, 12),
        "encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool),
        "timestep": FRACTIONS,
        "attention_mask": torch.ones(2, 8, dtype=torch.bool),
        "latent_cond": r(2, 8, 8),
    }


def _minimax_music() -> Example:
    config = {
        "in_channels": 8,
        "condition_dim": 12,
        "num_layers": 1,
        **HEADS,
        "ff_inner_dim": 24,
        "rotary_dim": 4,
        "fourier_embedding_dim": 8,
    }
    return config, {
        "hidden_states": r(2, 8, 6),
        "timestep": FRACTIONS,
        "encoder_hidden_states": r(2, 6, 12),
    }


def _rvq_decoder() -> Example:
    config = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "audio_vocab_size": 10,
        "num_codebooks": 3,
        "max_position_embeddings": 4,
    }
    return config, {"inputs_embeds": r(2, 3, 16)}


def _stable_audio() -> Example:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "num_layers": 1,
        **HEADS,
        "num_key_value_attention_heads": 1,
        "out_channels": 4,
        "cross_attention_dim": 8,
        "time_proj_dim": 8,
        "global_states_input_dim": 12,
        "cross_attention_input_dim": 10,
    }
    return config, {
        "hidden_states": r(2, 4, 8),
        "timestep": FRACTIONS,
        "encoder_hidden_states": r(2, 5, 10),
        "global_hidden_states": r(2, 1, 12),
        "rotary_embedding": (r(9, 4), r(9, 4)),
    }


def _stable_audio3() -> Example:
    config = {
        "io_channels": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "cond_token_dim": 16,
        "global_cond_dim": 12,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 16,
        "ff_mult": 2,
        "num_memory_tokens": 3,
    }
    return config, {
        "hidden_states": r(2, 8, 16),
        "timestep": FRACTIONS,
        "encoder_hidden_states": r(2, 4, 16),
        "global_hidden_states": r(2, 12),
        "local_add_cond": r(2, 5, 16),
    }


def _t5_film() -> Example:
    config = {
        "input_dims": 6,
        "targets_length": 8,
        "d_model": 16,
        "num_layers": 1,
        "num_heads": 2,
        "d_kv": 8,
        "d_ff": 24,
    }
    return config, {
        "encodings_and_masks": [(r(2, 5, 16), torch.ones(2, 5))],
        "decoder_input_tokens": r(2, 8, 6),
        "decoder_noise_time": FRACTIONS,
    }


def _temporal() -> Example:
    config = {
        **HEADS,
        "in_channels": 16,
        "norm_num_groups": 4,
        "cross_attention_dim": None,
    }
    return config, {"hidden_states": r(4, 16, 4, 4), "num_frames": 2}


def _protein() -> Example:
    times = ("time_emb_bb_ca", "time_emb_local_latents")
    config = {
        "nlayers": 3,
        "token_dim": 16,
        "nheads": 2,
        "dim_cond": 12,
        "pair_repr_dim": 8,
        "latent_dim": 6,
        "token_type_emb_dim": 4,
        "t_emb_dim": 8,
        "xt_pair_dist_dim": 10,
        "feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type"),
        "feats_cond_seq": times,
        "feats_pair_repr": ("xt_bb_ca_pair_dists",),
        "feats_pair_cond": times,
        "tri_mult_c": 8,
        "num_sequence_classes": 9,
    }
    return config, {
        "bb_ca": r(2, 5, 3),
        "local_latents": r(2, 5, 6),
        "bb_ca_time": FRACTIONS,
        "local_latents_time": FRACTIONS,
        "padding_mask": torch.ones(2, 5, dtype=torch.bool),
        "token_type": torch.zeros(2, 5, dtype=torch.long),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(2, 5, dtype=torch.bool),
            "supports_local_latent": torch.ones(2, 5, dtype=torch.bool),
        },
    }


def _unidiffuser() -> Example:
    config = {
        "text_dim": 12,
        "clip_img_dim": 10,
        "num_text_tokens": 5,
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "activation_fn": "gelu",
        "num_embeds_ada_norm": 10,
        "norm_type": "layer_norm",
        "use_patch_pos_embed": True,
    }
    return config, {
        "latent_image_embeds": r(2, 4, 8, 8),
        "image_embeds": r(2, 1, 10),
        "prompt_embeds": r(2, 5, 12),
        "timestep_img": STEPS.long(),
        "timestep_text": STEPS.long(),
    }


def _prior() -> Example:
    config = {
        **HEADS,
        "num_layers": 1,
        "embedding_dim": 12,
        "num_embeddings": 5,
        "additional_embeddings": 4,
    }
    return config, {
        "hidden_states": r(2, 12),
        "timestep": 2,
        "proj_embedding": r(2, 12),
        "encoder_hidden_states": r(2, 5, 12),
    }


OTHER: Table = {
    "AceStepTransformer1DModel": _ace_step,
    "LongCatAudioDiTTransformer": _longcat_audio,
    "MiniMaxMusic3RVQDepthDecoder": _rvq_decoder,
    "MiniMaxMusic3Transformer1DModel": _minimax_music,
    "PriorTransformer": _prior,
    "RFD4ProteinaTransformer": _protein,
    "StableAudio3DiTModel": _stable_audio3,
    "StableAudioDiTModel": _stable_audio,
    "T5FilmDecoder": _t5_film,
    "TransformerTemporalModel": _temporal,
    "UniDiffuserModel": _unidiffuser,
}
