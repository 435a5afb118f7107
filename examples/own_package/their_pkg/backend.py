"""A backend: how a quantized linear runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import segquant
from segquant.kernels.reference import REFERENCE
from segquant.numerics.layout import Layout


@segquant.register
class Halved(segquant.Backend):
    """The reference's arithmetic on weights that are kept in bfloat16: half the memory, other roundings."""

    name: ClassVar[str] = "halved"

    def why_not(self, layout: Layout, device: torch.device) -> str | None:
        return None if layout.scheme.weight is not None else "has no weight to keep"

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Any:
        packed = REFERENCE.pack(layout, tensors)
        return replace(packed, weight=packed.weight.bfloat16())

    def linear(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        return REFERENCE.linear(x, layout, replace(packed, weight=packed.weight.float()))
