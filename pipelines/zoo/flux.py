"""The small FLUX: a velocity model, then guidance distilled into its embedding."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from segquant_bench.pipelines.zoo import t5
from segquant_bench.pipelines.zoo.family import SIBLING, Setting, embedded, load_vae, pictures, scaled_latents, write
from segquant_bench.pipelines.zoo.flow import Cached, draw, plain_attention, rectified_flow
from segquant_bench.pipelines.zoo.loop import Recipe, fit

GUIDANCE = (1.0, 6.0)


def build() -> FluxTransformer2DModel:
    """Two double and four single blocks of width 256 (4 heads of 64) on 16 tokens, guidance embedded."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=t5.WIDTH,
        pooled_projection_dim=128,
        guidance_embeds=True,
        axes_dims_rope=(8, 28, 28),
    )


def hidden_matrix(name: str) -> bool:
    """What Muon takes: matrices inside the blocks."""
    return "transformer_blocks." in name


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[n, c, h, w] → [n, h/2 · w/2, 4c], in patches of 2."""
    packed: torch.Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def velocity(
    model: nn.Module,
    packed: torch.Tensor,
    sigma: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    guidance: torch.Tensor,
) -> torch.Tensor:
    """Velocity [n, tokens, channels] of packed latents; levels and guidance [n]."""
    side = int(packed.shape[1] ** 0.5)
    words, pooled = text
    found: torch.Tensor = model(
        hidden_states=packed,
        timestep=sigma,
        guidance=guidance,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        img_ids=FluxPipeline._prepare_latent_image_ids(1, side, side, packed.device, torch.float32),
        txt_ids=torch.zeros(words.shape[1], 3, device=packed.device),
        return_dict=False,
    )[0].float()
    return found


def train_velocity(cached: Cached, recipe: Recipe, folder: Path, device: str) -> FluxTransformer2DModel:
    """Rectified flow with dropped captions, at guidance 1."""
    torch.manual_seed(5)
    model = build().to(device)

    def loss(step: int) -> torch.Tensor:
        batch = draw(cached.latents, recipe.batch, step + 5 * 10**6, device)
        mixed, sigma, target = rectified_flow(batch)
        text = cached.text(batch.index, batch.drop, device)
        with torch.autocast(device, torch.bfloat16):
            found = velocity(model, pack(mixed), sigma, text, torch.ones_like(sigma))
        return F.mse_loss(found, pack(target))

    with plain_attention(device):
        return fit("velocity", model, loss, recipe, folder, hidden_matrix)


def distil_guidance(
    teacher: FluxTransformer2DModel, cached: Cached, recipe: Recipe, folder: Path, device: str
) -> FluxTransformer2DModel:
    """Guidance into the embedding (Meng et al. 2210.03142, section 3.1).

    Starting as the teacher, the student learns v(∅) + g (v(c) − v(∅)) for g uniform in `GUIDANCE`.
    """
    torch.manual_seed(6)
    teacher = teacher.to(device).eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True).train()
    low, high = GUIDANCE

    def loss(step: int) -> torch.Tensor:
        batch = draw(cached.latents, recipe.batch, step + 6 * 10**6, device)
        mixed, sigma, _ = rectified_flow(batch)
        packed, guidance, kept = pack(mixed), low + (high - low) * batch.uniform, torch.zeros_like(batch.drop)
        with torch.autocast(device, torch.bfloat16):
            text = cached.text(batch.index, kept, device)
            with torch.no_grad():
                one = torch.ones_like(guidance)
                conditional = velocity(teacher, packed, sigma, text, one)
                free = velocity(teacher, packed, sigma, cached.text(batch.index, ~kept, device), one)
            found = velocity(student, packed, sigma, text, guidance)
        return F.mse_loss(found, torch.lerp(free, conditional, guidance[:, None, None]))

    with plain_attention(device):
        return fit("guidance", student, loss, recipe, folder, hidden_matrix)


SHARED = {"vae": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer"}
RECIPES = {
    "t5": Recipe(steps=600, batch=512, lr=2e-3, weight_decay=0.01, average=0.995),
    "velocity": Recipe(steps=1200, batch=256, lr=2e-3, average=0.998, muon=True),
    "guidance": Recipe(steps=400, batch=128, lr=5e-4, average=0.995, muon=True),
}
SHARES = {"t5": 0.06, "velocity": 0.69, "guidance": 0.25}


def assemble(transformer: FluxTransformer2DModel, encoder: T5EncoderModel, tokenizer: T5Tokenizer) -> FluxPipeline:
    """The whole pipeline, with the sibling's autoencoder and CLIP."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=load_vae(),
        text_encoder=CLIPTextModel.from_pretrained(SIBLING / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(SIBLING / "tokenizer"),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )


def train(setting: Setting) -> FluxPipeline:
    """All trainings, resumable, and the written folder."""
    images, captions = pictures()
    latents = scaled_latents(images, shift=True)
    recipes = {name: setting.recipe(recipe, SHARES[name]) for name, recipe in RECIPES.items()}
    tokenizer = t5.build_tokenizer([*captions, ""], setting.work / "tokenizer_2")
    encoder = t5.train(latents, captions, tokenizer, recipes["t5"], setting.work, setting.device)
    encoder = encoder.bfloat16().float()  # captions are embedded by what will be stored
    pipe = assemble(build(), encoder, tokenizer)

    def encode(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        words, pooled = pipe.encode_prompt(prompts, max_sequence_length=t5.CONTEXT)[:2]
        return words, pooled

    cached = Cached(latents, *embedded(encode, captions))
    teacher = train_velocity(cached, recipes["velocity"], setting.work, setting.device)
    student = distil_guidance(teacher, cached, recipes["guidance"], setting.work, setting.device)
    pipe.register_modules(transformer=student.cpu().eval())
    write(pipe, setting.output, SHARED)
    return pipe
