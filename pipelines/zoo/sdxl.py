"""The small SDXL pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from segquant_bench.pipelines.zoo.family import SIBLING, Setting, embedded, load_vae, pictures, scaled_latents, write
from segquant_bench.pipelines.zoo.flow import Cached, draw, plain_attention
from segquant_bench.pipelines.zoo.loop import Recipe, fit

SIDE = 64
TIME_WIDTH = 32
SHARED = {name: name for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
RECIPE = Recipe(steps=1900, batch=256, lr=2e-3, average=0.998, muon=True)


def build() -> UNet2DConditionModel:
    """Levels 8×8, 4×4, 2×2 of 96, 160 and 128 channels, transformers in the lower two, heads of 32."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 160, 128),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(3, 5, 4),  # numbers of heads, as SDXL's configuration means them
        cross_attention_dim=256,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=128 + 6 * TIME_WIDTH,
    )


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's betas, rescaled to zero terminal SNR, predicting v (Lin et al. 2305.08891)."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def hidden_matrix(name: str) -> bool:
    """What Muon takes: kernels and matrices inside the blocks."""
    return name.startswith(("down_blocks.", "mid_block.", "up_blocks."))


def time_ids(rows: int) -> torch.Tensor:
    """Sizes and crop of an uncropped picture, float [rows, 6]."""
    return torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], dtype=torch.float32).expand(rows, -1)


def train_unet(cached: Cached, recipe: Recipe, folder: Path, device: str) -> UNet2DConditionModel:
    """v-prediction (Salimans & Ho 2202.00512, appendix D) at uniform timesteps."""
    torch.manual_seed(7)
    model = build().to(device)
    kept = scheduler().alphas_cumprod.to(device)
    ids = time_ids(recipe.batch).to(device)

    def loss(step: int) -> torch.Tensor:
        batch = draw(cached.latents, recipe.batch, step + 7 * 10**6, device)
        timestep = (batch.uniform * len(kept)).long()
        alpha = kept[timestep].sqrt()[:, None, None, None]
        sigma = (1 - kept[timestep]).sqrt()[:, None, None, None]
        words, pooled = cached.text(batch.index, batch.drop, device)
        with torch.autocast(device, torch.bfloat16):
            found = model(
                alpha * batch.clean + sigma * batch.noise,
                timestep,
                words,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
                return_dict=False,
            )[0]
        return F.mse_loss(found.float(), alpha * batch.noise - sigma * batch.clean)

    with plain_attention(device):
        return fit("unet", model, loss, recipe, folder, hidden_matrix)


def assemble(unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """The whole pipeline; all but UNet and scheduler are the sibling's."""
    return StableDiffusionXLPipeline(
        vae=load_vae(),
        text_encoder=CLIPTextModel.from_pretrained(SIBLING / "text_encoder", dtype=torch.float32),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(SIBLING / "text_encoder_2", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(SIBLING / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(SIBLING / "tokenizer_2"),
        unet=unet,
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def train(setting: Setting) -> StableDiffusionXLPipeline:
    """Resumable; writes the folder."""
    images, captions = pictures()
    pipe = assemble(build())

    def encode(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        words, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
        return words, pooled

    latents = scaled_latents(images, shift=False)  # SDXL's pipeline knows no shift
    cached = Cached(latents, *embedded(encode, captions))
    unet = train_unet(cached, setting.recipe(RECIPE, 1.0), setting.work, setting.device)
    pipe.register_modules(unet=unet.cpu().eval())
    write(pipe, setting.output, SHARED)
    return pipe
