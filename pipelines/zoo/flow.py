"""What the denoisers' trainings share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

CAPTION_DROPOUT = 0.1


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """Plain attention; on the CPU, torch's fused kernel is slower backward.

    Raises:
        ValueError: a mask, dropout or causal order.
    """
    if attn_mask is not None or dropout_p or is_causal:
        raise ValueError("plain attention takes no mask, no dropout and no causal order; train on another device")
    weights = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    return weights.softmax(-1) @ value


@contextmanager
def plain_attention(device: str) -> Iterator[None]:
    """`attention` in place of torch's kernel, on the CPU."""
    original = F.scaled_dot_product_attention
    if device == "cpu":
        F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


@dataclass(frozen=True)
class Cached:
    """Latents and text embeddings of every picture.

    Attributes:
        latents: float [n, c, h, w], as the denoiser sees them.
        words: float [n, tokens, width].
        pooled: float [n, width].
        empty: [tokens, width] and [width] of the empty prompt.
    """

    latents: torch.Tensor
    words: torch.Tensor
    pooled: torch.Tensor
    empty: tuple[torch.Tensor, torch.Tensor]

    def text(self, index: torch.Tensor, drop: torch.Tensor, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Words and pooled text of `index`, the empty prompt's where `drop` (bool [b])."""
        words = torch.where(drop[:, None, None], self.empty[0], self.words[index])
        pooled = torch.where(drop[:, None], self.empty[1], self.pooled[index])
        return words.to(device), pooled.to(device)


@dataclass(frozen=True)
class Draw:
    """One training batch, which depends on the step alone.

    Attributes:
        index: int64 [b], which pictures.
        clean: float [b, c, h, w].
        noise: float [b, c, h, w].
        uniform: float [b].
        normal: float [b].
        drop: bool [b], whose caption is dropped.
    """

    index: torch.Tensor
    clean: torch.Tensor
    noise: torch.Tensor
    uniform: torch.Tensor
    normal: torch.Tensor
    drop: torch.Tensor


def draw(latents: torch.Tensor, batch: int, seed: int, device: str) -> Draw:
    """A step's batch, drawn on the CPU: the same on every device."""
    source = torch.Generator().manual_seed(seed)
    index = torch.randint(len(latents), (batch,), generator=source)
    clean = latents[index]
    noise = torch.randn(clean.shape, generator=source)
    uniform, normal = torch.rand(batch, generator=source), torch.randn(batch, generator=source)
    drop = torch.rand(batch, generator=source) < CAPTION_DROPOUT
    return Draw(index, clean.to(device), noise.to(device), uniform.to(device), normal.to(device), drop)


def rectified_flow(batch: Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, logit-normal levels and velocity (Esser et al. 2403.03206, eq. 12–14)."""
    sigma = batch.normal.sigmoid()
    mixed = torch.lerp(batch.clean, batch.noise, sigma[:, None, None, None])
    return mixed, sigma, batch.noise - batch.clean
