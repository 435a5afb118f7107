"""Random pipelines of every family of conf/model: the published denoisers' settings at two blocks and small widths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant_bench.pipelines.architectures import architecture, build_denoiser
from tests.tiny import tiny_text_encoder, tiny_tokenizer

SD3 = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 32,
    "num_attention_heads": 2, "joint_attention_dim": 64, "caption_projection_dim": 64, "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 64, "pooled_projection_dim": 32, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip
SDXL = {
    "sample_size": 16, "block_out_channels": [32, 64, 64], "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [2, 4, 4], "cross_attention_dim": 64, "layers_per_block": 1, "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 128,
}  # fmt: skip
PIXART = {
    "sample_size": 16, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
    "cross_attention_dim": 64, "caption_channels": 64, "interpolation_scale": 1,
}  # fmt: skip
SANA = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
    "cross_attention_dim": 32, "caption_channels": 16,
}  # fmt: skip
DIT = {"sample_size": 16, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2}
CONTROLNETS = {
    "sd3_canny": ("sd3_controlnet", SD3),
    "flux_canny": ("flux_controlnet", {**FLUX, "num_single_layers": 0}),
}
LABELS = {"207": "golden retriever", "1": "goldfish, Carassius auratus"}
SHIPPED = {"sd3_canny": "sd3_medium", "flux_canny": "flux1_dev"}


def shallow(name: str, changes: dict[str, Any]) -> nn.Module:
    """A published denoiser with `changes`, random weights that are not zero anywhere."""
    if name == "sd35_medium":
        changes = {**changes, "dual_attention_layers": [0]}
    if name == "flux1_schnell":
        changes = {**changes, "guidance_embeds": False}
    found = architecture(name, **changes)
    model = build_denoiser(found.class_name, found.config, "cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def tiny_vae() -> nn.Module:
    """Latents of 4 channels at half the pictures' size."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
        scaling_factor=1.0, shift_factor=0.0,
    ).eval()  # fmt: skip


def tiny_t5() -> tuple[nn.Module, Any]:
    """An encoder of width 64 and a tokenizer over letters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=16)
    config = T5Config(vocab_size=len(pieces), d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), tokenizer


def tiny_gemma() -> tuple[nn.Module, Any]:
    """A decoder of width 16 and a tokenizer over letters."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *map(chr, range(33, 127))]
    tokenizer = GemmaTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])
    config = Gemma2Config(
        vocab_size=len(names), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=2048,
    )  # fmt: skip
    return Gemma2Model(config).eval(), tokenizer


def plain_clip(width: int) -> nn.Module:
    """The encoder of `tiny_text_encoder` without its projection."""
    from transformers import CLIPTextModel

    return CLIPTextModel(tiny_text_encoder(width).config).eval()


def _sd3(name: str) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    t5, tokenizer = tiny_t5()
    return StableDiffusion3Pipeline(
        transformer=shallow(name, SD3), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=tiny_vae(),
        text_encoder=tiny_text_encoder(32), tokenizer=tiny_tokenizer(), text_encoder_2=tiny_text_encoder(32),
        tokenizer_2=tiny_tokenizer(), text_encoder_3=t5, tokenizer_3=tokenizer,
    )  # fmt: skip


def _flux(name: str) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    t5, tokenizer = tiny_t5()
    return FluxPipeline(
        transformer=shallow(name, FLUX), scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_vae(), text_encoder=plain_clip(32), tokenizer=tiny_tokenizer(), text_encoder_2=t5,
        tokenizer_2=tokenizer,
    )  # fmt: skip


def _sdxl(name: str) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        unet=shallow(name, SDXL), scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"), vae=tiny_vae(),
        text_encoder=plain_clip(32), tokenizer=tiny_tokenizer(), text_encoder_2=tiny_text_encoder(32),
        tokenizer_2=tiny_tokenizer(),
    )  # fmt: skip


def _pixart(name: str) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    t5, tokenizer = tiny_t5()
    return PixArtSigmaPipeline(
        transformer=shallow(name, PIXART), scheduler=DPMSolverMultistepScheduler(), vae=tiny_vae(), text_encoder=t5,
        tokenizer=tokenizer,
    )  # fmt: skip


def _sana(name: str) -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline

    gemma, tokenizer = tiny_gemma()
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
    ).eval()  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(
        transformer=shallow(name, SANA), scheduler=scheduler, vae=vae, text_encoder=gemma, tokenizer=tokenizer
    )


def _dit(name: str) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline

    return DiTPipeline(transformer=shallow(name, DIT), vae=tiny_vae(), scheduler=DDIMScheduler())


BUILDERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("sd3_medium", "sd35_medium", "sd35_large"), _sd3),
    **dict.fromkeys(("flux1_dev", "flux1_schnell"), _flux),
    **dict.fromkeys(("sdxl", "sdxl_turbo"), _sdxl),
    "pixart_sigma": _pixart,
    "sana": _sana,
    "dit_xl_2": _dit,
    "sd3_canny": _sd3,
    "flux_canny": _flux,
}


def tiny_family(name: str, folder: Path, seed: int = 0) -> list[str]:
    """Write a random pipeline of `model=NAME` (and its ControlNet) into `folder`; overrides that make it run there.

    Pictures are 32×32, made in two steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BUILDERS[name](SHIPPED.get(name, name)).save_pretrained(folder / "pipeline")
        if name == "dit_xl_2":  # diffusers reads the names of classes, and does not write them
            index = folder / "pipeline" / "model_index.json"
            index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": LABELS}))
        if name in CONTROLNETS:
            shallow(*CONTROLNETS[name]).save_pretrained(folder / "controlnet")
    overrides = [
        f"model={name}", f"model.path={folder / 'pipeline'}", "model.variant=null", "model.dtype=float32",
        "model.device=cpu", "model.call.height=32", "model.call.width=32", "model.call.num_inference_steps=2",
    ]  # fmt: skip
    if name not in ("sdxl", "sdxl_turbo", "dit_xl_2"):
        overrides.append("model.call.max_sequence_length=8")
    if name in CONTROLNETS:
        overrides.append(f"model.parts.controlnet.path={folder / 'controlnet'}")
    return overrides
