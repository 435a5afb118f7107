"""Tiny configurations: ControlNets and ControlNet-XS."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from tests.segquant.graph.denoisers.tiny_denoisers import Example, Table, r
from tests.segquant.graph.denoisers.tiny_denoisers_flux import flow_tokens
from tests.segquant.graph.denoisers.tiny_denoisers_image import HUNYUAN_DIT, hunyuan_dit_inputs
from tests.segquant.graph.denoisers.tiny_denoisers_image2 import (
    SANA,
    SD3,
    qwen,
    sana_inputs,
    sd3_inputs,
    z_image_inputs,
)
from tests.segquant.graph.denoisers.tiny_denoisers_unets import UNET, blocks, sample
from tests.segquant.graph.denoisers.tiny_denoisers_video import COSMOS, STEP

EDGES = (2, 3, 16, 16)


def _controlnet() -> Example:
    config = {key: value for key, value in UNET.items() if key != "sample_size"}
    config |= {"attention_head_dim": 2, "conditioning_embedding_out_channels": (4, 8)}
    config["down_block_types"] = blocks("CrossAttnDownBlock2D")["down_block_types"]
    return config, sample(8, 8) | {"controlnet_cond": r(*EDGES)}


def _union() -> Example:
    config, inputs = _controlnet()
    config |= {"num_trans_channel": 16, "num_trans_head": 2, "num_proj_channel": 16, "num_control_type": 3}
    config |= {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 3 * 8,
    }
    # Its time embedding of the control types has the size of the added one, less the text.
    return config, inputs | {
        "controlnet_cond": [r(*EDGES)],
        "control_type": torch.tensor([[1, 0, 0]] * 2),
        "control_type_idx": [0],
        "conditioning_scale": [1.0],
        "added_cond_kwargs": {"text_embeds": r(2, 8), "time_ids": r(2, 2)},
    }


def _xs() -> Example:
    config = UNET | blocks("CrossAttnDownBlock2D") | {"num_attention_heads": 2, "upcast_attention": False}
    config |= {
        "ctrl_block_out_channels": (4, 8),
        "ctrl_num_attention_heads": 2,
        "ctrl_max_norm_num_groups": 4,
        "ctrl_conditioning_embedding_out_channels": (4, 4),
    }
    config.pop("layers_per_block")
    return config, sample(8, 8) | {"controlnet_cond": r(*EDGES)}


def _cosmos() -> Example:
    config = COSMOS | {
        "n_controlnet_blocks": 1,
        "in_channels": 6,
        "latent_channels": 6,
        "model_channels": 24,
        "img_context_dim_in": 10,
        "img_context_dim_out": 24,
        "encoder_hidden_states_channels": 16,
    }
    config["extra_pos_embed_type"] = None
    return config, {
        "controls_latents": r(1, 4, 1, 8, 8),
        "latents": r(1, 4, 1, 8, 8),
        "timestep": STEP,
        "encoder_hidden_states": (r(1, 6, 16), r(1, 4, 10)),
        "condition_mask": torch.ones(1, 1, 1, 8, 8),
        "padding_mask": torch.zeros(1, 1, 8, 8),
    }


def _flux() -> Example:
    config, inputs = flow_tokens(pooled_projection_dim=12)
    return config, inputs | {"controlnet_cond": r(2, 6, 4), "pooled_projections": r(2, 12)}


def _hunyuan_dit() -> Example:
    config = HUNYUAN_DIT | {"transformer_num_layers": 4}
    return config, hunyuan_dit_inputs() | {"controlnet_cond": r(2, 4, 8, 8)}


def _qwen() -> Example:
    config, inputs = qwen()
    return config, inputs | {"controlnet_cond": r(1, 16, 8)}


def _sd3() -> Example:
    return SD3 | {"num_layers": 1, "qk_norm": "rms_norm"}, sd3_inputs() | {"controlnet_cond": r(2, 4, 8, 8)}


def _sana() -> Example:
    return SANA | {"sample_size": 8}, sana_inputs(8, 8) | {"controlnet_cond": r(2, 4, 8, 8)}


def _sparse() -> Example:
    config, inputs = _controlnet()
    config |= {
        "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
        "motion_num_attention_heads": 2,
        "num_attention_heads": 2,
        "use_simplified_condition_embedding": False,
        "conditioning_channels": 3,
    }
    return config, inputs | {
        "sample": r(2, 4, 2, 8, 8),
        "encoder_hidden_states": r(4, 5, 12),
        "controlnet_cond": r(2, 3, 2, 16, 16),
        "conditioning_mask": torch.ones(2, 1, 2, 16, 16),
    }


def _z_image() -> Example:
    config = {
        "control_layers_places": [0],
        "control_refiner_layers_places": [0],
        "control_in_dim": 4,
        "add_control_noise_refiner": "control_noise_refiner",
        "dim": 32,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
    }
    return config, z_image_inputs() | {"control_context": [r(4, 1, 8, 8), r(4, 1, 8, 8)]}


def several(single: str, example: Example, *, nets: int = 2, **listed: Any) -> Example:
    """ControlNets side by side, for two control pictures; `listed` gives arguments that are wanted once for each."""
    config, inputs = example
    several_nets = [getattr(diffusers, single)(**config) for _ in range(nets)]
    pictures = {"controlnet_cond": [inputs["controlnet_cond"]] * 2, "conditioning_scale": [1.0, 0.5]}
    once_each = {key: [value] * 2 for key, value in listed.items()}
    return {"controlnets": several_nets}, inputs | pictures | once_each | {"return_dict": False}


def prepared(name: str, model: nn.Module) -> nn.Module:
    """What a class needs before it can be called: this ControlNet takes its embedders from the transformer."""
    if name == "ZImageControlNetModel":
        from tests.segquant.graph.denoisers.tiny_denoisers_image2 import IMAGE2

        config, _ = IMAGE2["ZImageTransformer2DModel"]()
        return type(model).from_transformer(model, diffusers.ZImageTransformer2DModel(**config))
    return model


CONTROLNETS: Table = {
    "ControlNetModel": _controlnet,
    "ControlNetUnionModel": _union,
    "CosmosControlNetModel": _cosmos,
    "FluxControlNetModel": _flux,
    "FluxMultiControlNetModel": lambda: several(
        "FluxControlNetModel", _flux(), controlnet_mode=torch.zeros(2, dtype=torch.long)
    ),
    "HunyuanDiT2DControlNetModel": _hunyuan_dit,
    "HunyuanDiT2DMultiControlNetModel": lambda: several("HunyuanDiT2DControlNetModel", _hunyuan_dit()),
    "MultiControlNetModel": lambda: several("ControlNetModel", _controlnet()),
    "QwenImageControlNetModel": _qwen,
    "QwenImageMultiControlNetModel": lambda: several("QwenImageControlNetModel", _qwen(), nets=1),
    "SD3ControlNetModel": _sd3,
    "SD3MultiControlNetModel": lambda: several("SD3ControlNetModel", _sd3()),
    "SanaControlNetModel": _sana,
    "SparseControlNetModel": _sparse,
    "UNetControlNetXSModel": _xs,
    "ZImageControlNetModel": _z_image,
}
