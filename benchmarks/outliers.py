"""What makes trained denoisers hard to quantize, planted in random ones: uneven chunks, outlier channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHUNKS = (0.4, 2.0, 0.6, 0.4, 4.0, 0.8, 0.2, 1.2, 0.4)
"""Sizes of the chunks of an AdaLN linear (shift, scale, gate, …), as many as it has."""
OUTLIERS = 64
"""One channel in so many is far larger than the others."""


def spoil(layer: nn.Linear | nn.Conv2d, generator: torch.Generator, width: int | None = None) -> None:
    """New weights of unit gain with outlier input columns and outlier outputs, in place.

    Args:
        layer: linear or ungrouped convolution.
        generator: of the weights.
        width: chunks of so many outputs get sizes of their own instead (an AdaLN linear).
    """
    layer.weight.normal_(0, layer.weight[0].numel() ** -0.5, generator=generator)
    if layer.bias is not None:
        layer.bias.normal_(0, 0.1, generator=generator)
    inputs, outputs = layer.weight.shape[1], layer.weight.shape[0]
    if width is not None:
        sizes = torch.tensor(CHUNKS[: outputs // width])
        layer.weight.mul_(sizes.repeat_interleave(width)[:, None])
        return
    few = max(1, inputs // OUTLIERS)
    layer.weight[:, torch.randperm(inputs, generator=generator)[:few]] *= 3
    few = max(1, outputs // OUTLIERS)
    chosen = torch.randperm(outputs, generator=generator)[:few]
    if layer.bias is not None:
        layer.bias[chosen] += 4 * torch.randn(few, generator=generator).sign()


def pictures(batch: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth pictures [batch, channels, size, size]."""
    coarse = torch.randn(batch, channels, size // 4, size // 4, generator=generator)
    return nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") * 1.5


def words(batch: int, count: int, width: int, generator: torch.Generator) -> Tensor:
    """Text embeddings [batch, count, width] with massive channels."""
    text = torch.randn(batch, count, width, generator=generator)
    text[..., : width // 48] *= 8
    return text
