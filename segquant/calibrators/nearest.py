"""Round to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from segquant.calibrators.protocol import Calibrator
from segquant.numerics import functional as F
from segquant.registry import register


@register
@dataclass(frozen=True)
class Nearest(Calibrator):
    """Every weight to its nearest code."""

    name: ClassVar[str] = "amax"

    def round(self, weight: Tensor, scale: Tensor, dtype: str, prepared: Any) -> Tensor:
        return F.fake_quantize(weight, scale, dtype)
