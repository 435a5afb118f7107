"""The randomized Hadamard rotation of QuaRot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.numerics.hadamard import random_signs
from segquant.numerics.layout import Layout
from segquant.numerics.transform import Transform
from segquant.optimizers.protocol import Rotation
from segquant.registry import register
from segquant.transforms import rotation


@register
@dataclass(frozen=True)
class Hadamard(Rotation):
    """Signs drawn from the method's seed, then Hadamard blocks (arXiv 2404.00456, section 4)."""

    name: ClassVar[str] = "hadamard"
    transform: ClassVar[Transform] = rotation.Rotation()

    def fit(self, layout: Layout, seed: int, device: torch.device) -> Mapping[str, Tensor]:
        return {"rotation_signs": random_signs(layout.in_features, seed).to(device)}
