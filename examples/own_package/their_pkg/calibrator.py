"""A calibrator: how a weight is put on its grid."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

import segquant
from segquant.numerics import functional


@segquant.register
@dataclass(frozen=True)
class TowardZero(segquant.Calibrator):
    """Moves weights towards zero by a share of a step, then rounds to nearest: 0.5 truncates."""

    name: ClassVar[str] = "toward_zero"
    share: float = 0.25

    def round(self, weight: Tensor, scale: Tensor, dtype: str, prepared: Any) -> Tensor:
        smaller = weight.sign() * (weight.abs() - self.share * scale).clamp_min(0)
        return functional.fake_quantize(smaller, scale, dtype)
