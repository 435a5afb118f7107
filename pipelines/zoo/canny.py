"""The small SD3's ControlNet on Canny edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import SD3ControlNetModel, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image

from segquant_bench.pipelines.data.canny import control_picture
from segquant_bench.pipelines.zoo import vae
from segquant_bench.pipelines.zoo.family import SHARD, SIBLING, Setting, embedded, load_vae, pictures, scaled_latents
from segquant_bench.pipelines.zoo.flow import Cached, draw, plain_attention, rectified_flow
from segquant_bench.pipelines.zoo.loop import Recipe, fit

LAYERS = 3
RECIPE = Recipe(steps=900, batch=192, lr=1e-3, average=0.995, muon=True)


def build(transformer: SD3Transformer2DModel) -> SD3ControlNetModel:
    """Copies of the denoiser's embeddings and first three blocks, each feeding two blocks through zeros.

    As InstantX's: zero pooled text, unshifted latents.
    """
    taken = ["sample_size", "patch_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads"]
    taken += ("joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size", "qk_norm")
    model = SD3ControlNetModel(num_layers=LAYERS, **{name: transformer.config[name] for name in taken})
    for part in ("pos_embed", "time_text_embed", "context_embedder"):
        getattr(model, part).load_state_dict(getattr(transformer, part).state_dict())
    for copy, block in zip(model.transformer_blocks, transformer.transformer_blocks, strict=False):
        copy.load_state_dict(block.state_dict())
    return model


def hidden_matrix(name: str) -> bool:
    """What Muon takes: matrices inside the blocks."""
    return name.startswith("transformer_blocks.")


@torch.no_grad()
def edge_latents(images: torch.Tensor) -> torch.Tensor:
    """Latents [n, 16, 8, 8] of the pictures' edges; `images` in −1 … 1."""
    arrays = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    edges = np.stack([np.asarray(control_picture(Image.fromarray(array))) for array in arrays])
    encoder = load_vae()
    latents: torch.Tensor = vae.encode(encoder, vae.to_tensor(edges)) * encoder.config.scaling_factor
    return latents


def train_controlnet(
    transformer: SD3Transformer2DModel, cached: Cached, edges: torch.Tensor, recipe: Recipe, folder: Path, device: str
) -> SD3ControlNetModel:
    """The denoiser's objective, the denoiser frozen (Zhang et al. 2302.05543, eq. 5); `edges` float [n, 16, 8, 8]."""
    torch.manual_seed(8)
    transformer = transformer.to(device).eval().requires_grad_(False)
    model = build(transformer).to(device).train()

    def loss(step: int) -> torch.Tensor:
        batch = draw(cached.latents, recipe.batch, step + 8 * 10**6, device)
        mixed, sigma, target = rectified_flow(batch)
        words, pooled = cached.text(batch.index, batch.drop, device)
        seen = edges[batch.index].to(device)
        inputs = {"hidden_states": mixed, "encoder_hidden_states": words, "timestep": 1000 * sigma}
        with torch.autocast(device, torch.bfloat16):
            control = model(controlnet_cond=seen, pooled_projections=torch.zeros_like(pooled), **inputs)
            residuals = control.controlnet_block_samples
            found = transformer(pooled_projections=pooled, block_controlnet_hidden_states=residuals, **inputs).sample
        return F.mse_loss(found.float(), target)

    with plain_attention(device):
        return fit("controlnet", model, loss, recipe, folder, hidden_matrix)


def load_sibling() -> StableDiffusion3Pipeline:
    """The SD3 pipeline."""
    return StableDiffusion3Pipeline.from_pretrained(SIBLING, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32)


def train(setting: Setting) -> SD3ControlNetModel:
    """Resumable; writes the ControlNet alone."""
    images, captions = pictures()
    pipe = load_sibling()

    def encode(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        words, _, pooled, _ = pipe.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        return words, pooled

    cached = Cached(scaled_latents(images, shift=True), *embedded(encode, captions))
    recipe = setting.recipe(RECIPE, 1.0)
    model = train_controlnet(pipe.transformer, cached, edge_latents(images), recipe, setting.work, setting.device)
    model.cpu().to(torch.bfloat16).save_pretrained(setting.output / "controlnet", max_shard_size=SHARD)
    return model
