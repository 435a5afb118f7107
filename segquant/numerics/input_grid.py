"""The grid of a layer's input: fake quantization in float32, any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec, check_choice

NEGATIVES = ("dual", "zero_point", "shift")
"""How inputs whose signs differ are held (`Cuts.negative`)."""
Scales = tuple[Tensor, Tensor]
"""Of x ≥ 0 and of x below, or with "zero_point" scale and zero point; [..., pieces]."""


@dataclass(frozen=True)
class InputGrid:
    """Where an input [..., in] is cut, and the format of its pieces.

    Args:
        pieces: input channels per scale, summing to in.
        dual: pieces whose signs are treated apart; the others are symmetric.
        negative: how: "dual" (a scale per sign; DualScale) or "zero_point" (one grid over the range of both signs,
            which takes one product in place of two).
    """

    pieces: tuple[int, ...]
    dual: tuple[bool, ...]
    spec: QuantSpec
    negative: str = "dual"

    def __post_init__(self) -> None:
        check_choice("negative", self.negative, NEGATIVES[:2])
        if self.zero_point and self.spec.grid.kind != "int":
            raise ValueError(
                f'{self.spec.dtype} has no zero point; choose negative="dual" or "shift", or an integer precision'
            )

    @property
    def zero_point(self) -> bool:
        """Whether the second of the scales is a zero point."""
        return self.negative == "zero_point" and any(self.dual)

    def scales(self, positive: Tensor, negative: Tensor) -> Scales:
        """From the largest value and the smallest's magnitude per piece [..., pieces]."""
        dtype, kept = self.spec.dtype, self.spec.scale_dtype
        if not all(self.dual):
            plain = F.choose_scale(torch.maximum(positive, negative), dtype, kept)
            if not any(self.dual):
                return plain, plain
        first, second = (F.choose_zero_point if self.zero_point else F.choose_dual_scale)(
            positive, negative, dtype, kept
        )
        if all(self.dual):
            return first, second
        mask = torch.tensor(self.dual, dtype=torch.bool, device=plain.device)
        other = torch.full_like(plain, -F.code_min(dtype)) if self.zero_point else plain
        return torch.where(mask, first, plain), torch.where(mask, second, other)

    def dynamic(self, x: Tensor) -> Scales:
        """From the input [..., in], per token (or tensor)."""
        if any(self.dual):
            positive = F.piece_max(x, self.pieces).clamp_min_(0)
            negative = F.piece_max(-x, self.pieces).clamp_min_(0)
        else:
            positive = negative = F.piece_max(x.abs(), self.pieces)
        if self.spec.granularity == "tensor":
            positive, negative = _over_rows(positive), _over_rows(negative)
        return self.scales(positive, negative)

    def quantize(self, x: Tensor, static: Scales | None) -> Tensor:
        """Fake quantization of [..., in]; `static`: scales [pieces], None: from x."""
        scales = self.dynamic(x) if static is None else static
        if len(self.pieces) > 1 and F.uniform(self.pieces):  # what is broadcast is not written out
            folded: Tensor = x.unflatten(-1, (len(self.pieces), self.pieces[0]))
            return self._rounded(folded, *(scale.unsqueeze(-1) for scale in scales)).flatten(-2)
        return self._rounded(x, *(F.expand_pieces(scale, self.pieces) for scale in scales))

    def _rounded(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """With scales that broadcast."""
        if not any(self.dual):
            return F.fake_quantize(x, first, self.spec.dtype)
        run = F.zero_fake_quantize if self.zero_point else F.dual_fake_quantize
        return run(x, first, second, self.spec.dtype)


def _over_rows(values: Tensor) -> Tensor:
    """The maximum over all dimensions but the last, [1, …, 1, pieces]; 0 without rows."""
    lead = tuple(range(values.dim() - 1))
    if not values.numel():
        return values.new_zeros(*(1 for _ in lead), values.shape[-1])
    return values.amax(lead, keepdim=True) if lead else values  # amax takes no dimensions for all of them
