"""Rotations by Hadamard matrices: the randomized one of QuaRot, the regular one of ConvRot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segquant.bounds import check_most
from segquant.checks import check_fields
from segquant.numerics.hadamard import random_signs, regular_block
from segquant.numerics.layout import Layout
from segquant.numerics.transform import Transform
from segquant.optimizers.protocol import Rotation
from segquant.registry import register
from segquant.transforms import rotation
from segquant.transforms.regular_rotation import RegularRotation


@register
@dataclass(frozen=True)
class Hadamard(Rotation):
    """Signs drawn from the method's seed, then Hadamard blocks (arXiv 2404.00456, section 4)."""

    name: ClassVar[str] = "hadamard"
    transform: ClassVar[Transform] = rotation.Rotation()

    def fit(self, layout: Layout, seed: int, device: torch.device) -> Mapping[str, Tensor]:
        return {"rotation_signs": random_signs(layout.in_features, seed).to(device)}


@register
@dataclass(frozen=True)
class Regular(Rotation):
    """Regular Hadamard matrices in groups (arXiv 2512.03673), the same for every layer.

    Args:
        rotation_group: channels of a group, a power of four; smaller where it does not divide the layer.
    """

    rotation_group: int = 256
    name: ClassVar[str] = "regular"

    def __post_init__(self) -> None:
        check_fields(self)
        check_most(self)
        regular_block(self.rotation_group, self.rotation_group)

    @property
    def transform(self) -> Transform:
        return RegularRotation(self.rotation_group)

    def fit(self, layout: Layout, seed: int, device: torch.device) -> Mapping[str, Tensor]:
        return {}
