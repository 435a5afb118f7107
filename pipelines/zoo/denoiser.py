"""The small SD3 denoiser."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel

from segquant_bench.pipelines.zoo.flow import CAPTION_DROPOUT, attention
from segquant_bench.pipelines.zoo.loop import Recipe, fit


def build() -> SD3Transformer2DModel:
    """Six joint blocks of width 256 (4 heads of 64) on 16 tokens (8×8 latent, patches of 2)."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=6,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=256,
        caption_projection_dim=256,
        pooled_projection_dim=256,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def hidden_matrix(name: str) -> bool:
    """What Muon takes: matrices inside the blocks."""
    return name.startswith("transformer_blocks.")


def train(
    latents: torch.Tensor,
    text: torch.Tensor,
    pooled: torch.Tensor,
    empty: tuple[torch.Tensor, torch.Tensor],
    recipe: Recipe,
    folder: Path,
    device: str,
    initial: dict[str, torch.Tensor] | None = None,
) -> SD3Transformer2DModel:
    """Rectified flow (Esser et al. 2403.03206, eq. 12–14) with logit-normal timesteps.

    `latents` float [n, 16, 8, 8], shifted and scaled; `text` [n, 16, 256] and `pooled` [n, 256]; `empty` those of
    the empty prompt. `initial`: earlier weights.
    """
    torch.manual_seed(3)
    model = build().to(device)
    if initial is not None:
        model.load_state_dict(initial)
    if device == "cpu":
        F.scaled_dot_product_attention = attention  # type: ignore[assignment]

    def loss(step: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(step + 2 * 10**6)
        index = torch.randint(len(latents), (recipe.batch,), generator=draw)
        clean = latents[index].to(device)
        noise = torch.randn(clean.shape, generator=draw).to(device)
        sigma = torch.randn(recipe.batch, generator=draw).sigmoid().to(device)
        drop = torch.rand(recipe.batch, generator=draw) < CAPTION_DROPOUT
        words = torch.where(drop[:, None, None], empty[0], text[index]).to(device)
        pool = torch.where(drop[:, None], empty[1], pooled[index]).to(device)
        mixed = torch.lerp(clean, noise, sigma[:, None, None, None])
        with torch.autocast(device, torch.bfloat16):
            velocity = model(
                hidden_states=mixed,
                encoder_hidden_states=words,
                pooled_projections=pool,
                timestep=1000 * sigma,
                return_dict=False,
            )[0]
        return F.mse_loss(velocity.float(), noise - clean)

    return fit("denoiser", model, loss, recipe, folder, hidden_matrix)
