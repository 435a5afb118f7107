"""The `cpu` backend: exact integer products by a kernel of our own, from the codes as the layer stores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as nnf

from segquant.errors import QuantizationError
from segquant.kernels.backend import Backend
from segquant.kernels.cpu import operators
from segquant.modules.state import outside_autocast
from segquant.modules.window import Window
from segquant.numerics.layout import Layout
from segquant.registry import register
from segquant.transforms.chain import Chain, chain_of
from segquant.transforms.low_rank import LowRank
from segquant.transforms.smoothing import Smoothing

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
"""Inputs that the kernel reads and outputs that it writes; others pass as float32."""


@dataclass(frozen=True)
class Packed:
    """The layer's own tensors, its weight's scales by row, and the low-rank factors and the bias in float32.

    Args:
        down: of all branches, on the input as it comes, [ranks, in].
        form: the operators' last arguments, if the kernel does all of the input's part.
    """

    tensors: Mapping[str, Tensor]
    weight_scale: Tensor
    down: Tensor | None
    ups: tuple[Tensor, ...]
    bias: Tensor | None
    form: tuple[Any, ...] | None = None

    def arguments(self, beside: Tensor | None) -> tuple[Any, ...]:
        """Of the operators, after the input."""
        form: Any = self.form
        return self.tensors["codes"], self.weight_scale, self.bias, beside, *form


@register
@dataclass(frozen=True)
class Cpu(Backend):
    """Codes of the input times codes of the weight in integers, scaled afterwards; needs AVX2 and a C++ compiler.

    Weights stay as they are stored. Layers whose input stays in float take float products with weights that are
    dequantized panel by panel.
    """

    name: ClassVar[str] = "cpu"

    def why_not(self, layout: Layout, device: torch.device, window: Window | None = None) -> str | None:
        if device.type != "cpu":
            return f"runs on the CPU, and the layer is on {device}"
        for spec in (layout.weight_spec, layout.scheme.input):
            if spec is not None and spec.dtype == "fp8":
                return "multiplies integers, and fp8 has none"
        return operators.why_not_exact()

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Packed:
        if not torch.compiler.is_compiling() and (reason := operators.why_not_exact()) is not None:
            raise QuantizationError(f"backend {self.name!r} {reason}")  # of a layer copied from another process
        scale = tensors["weight_scale"]
        if len(layout.weight_rows) != layout.out_features:
            counts = torch.tensor(layout.weight_rows, dtype=torch.int64, device=scale.device)
            scale = scale.repeat_interleave(counts, dim=0, output_size=layout.out_features)
        elif layout.weight_spec.granularity == "tensor":
            scale = scale.contiguous()
        inside = _inside(layout)
        down, ups = _factors(layout, tensors) if inside else (None, ())
        bias = tensors["bias"].float() if layout.bias else None
        form = _form(layout, tensors.get("smooth"), _static(tensors), layout.branches) if inside else None
        return Packed(tensors, scale.contiguous(), down, ups, bias, form)

    def linear(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        with outside_autocast(x.device):
            rows = _known(x.reshape(-1, layout.in_features)).contiguous()
            if packed.form is None:
                out = _by_branch(rows, layout, packed)
            else:
                beside = None if packed.down is None else _beside(rows.float() @ packed.down.T, packed)
                out = operators.linear(rows, *packed.arguments(beside))
            if x.dim() != 2:
                out = out.reshape(*x.shape[:-1], layout.out_features)
            return out if out.dtype is x.dtype else out.to(x.dtype)

    def convolution(self, x: Tensor, layout: Layout, window: Window, packed: Any) -> Tensor:
        if packed.form is None:
            return super().convolution(x, layout, window, packed)
        with outside_autocast(x.device):
            images = _known(window.padded(x)).contiguous()
            beside = None
            if packed.down is not None:
                kernels = packed.down.unflatten(1, (-1, *window.kernel))
                inner = nnf.conv2d(images.float(), kernels, None, window.stride, 0, window.dilation)
                beside = _beside(inner.permute(0, 2, 3, 1).flatten(0, 2), packed)
            place = window.kernel, window.stride, window.dilation
            out = operators.convolution(images, *packed.arguments(beside), *place)
            return (out.squeeze(0) if x.dim() == 3 else out).to(x.dtype)


def _known(x: Tensor) -> Tensor:
    """In a dtype that the kernel reads."""
    return x if x.dtype in KERNEL_DTYPES else x.float()


def _inside(layout: Layout) -> bool:
    """Whether the kernel does all of the input's part: a smoothing, low-rank branches, scales of its own or by row."""
    spec = layout.scheme.input
    known = [type(transform) for transform in layout.transforms]
    whole = spec is not None and spec.dynamic and spec.granularity == "tensor"
    return not whole and known in ([], [Smoothing], [LowRank], [Smoothing, LowRank])


def _factors(layout: Layout, tensors: Mapping[str, Tensor]) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Low-rank factors, with the smoothing before them undone in the first."""
    low_rank = layout.transform("low_rank")
    if not isinstance(low_rank, LowRank) or not any(low_rank.ranks):
        return None, ()
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    for branch in range(len(low_rank.ranks)):
        place = layout.place(tensors, branch)
        down, up = low_rank.factors(place)
        before = Chain(tuple(each for each in layout.transforms if each is not low_rank), place)
        downs.append(before.undo(down))
        ups.append(up.contiguous())
    return torch.cat(downs).contiguous(), tuple(ups)


def _beside(inner: Tensor, packed: Packed) -> Tensor:
    """What low-rank branches add, [rows, out], from [rows, ranks]."""
    parts = inner.split([up.shape[1] for up in packed.ups], 1)
    found = [part @ up.T for part, up in zip(parts, packed.ups, strict=True)]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _by_branch(rows: Tensor, layout: Layout, packed: Packed) -> Tensor:
    """Transforms in plain torch, the rest in the kernel."""
    outputs = []
    for branch, cut in enumerate(layout.branch_slices):
        x, extra = chain_of(layout, packed.tensors, branch).run(rows.float())
        constant = [each for each in extra if each.dim() == 1]
        wide = [each for each in extra if each.dim() > 1]
        beside = sum(wide[1:], wide[0]).contiguous() if wide else None
        size = layout.branches[branch]
        if packed.bias is not None:
            constant = [*constant, packed.bias[cut]]
        bias = sum(constant[1:], constant[0]) if constant else None
        form = _form(layout, None, _scales_of(x, layout, packed, branch), (size,))
        part = Packed({"codes": packed.tensors["codes"][cut]}, packed.weight_scale[cut], None, (), bias, form)
        outputs.append(operators.linear(x.contiguous(), *part.arguments(beside)))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return out.to(rows.dtype)


Scales = tuple[Tensor | None, Tensor | None, Tensor | None]
"""For x ≥ 0, below, and zero points, [branches, pieces]; None: by the kernel, from each row."""


def _static(tensors: Mapping[str, Tensor]) -> Scales:
    found = [tensors.get(name) for name in ("input_scale", "input_scale_negative", "input_zero")]
    return found[0], found[1], found[2]


def _scales_of(x: Tensor, layout: Layout, packed: Packed, branch: int) -> Scales:
    grid = layout.input_grid
    if grid is not None and grid.spec.dynamic and grid.spec.granularity == "tensor":
        first, second = (scale.reshape(1, -1) for scale in grid.dynamic(x))
        return first, None if grid.zero_point else second, second if grid.zero_point else None
    above, below, zero = (None if each is None else each[branch : branch + 1] for each in _static(packed.tensors))
    return above, below, zero


def _form(layout: Layout, smooth: Tensor | None, scales: Scales, branches: tuple[int, ...]) -> tuple[Any, ...]:
    """The operators' arguments after `beside`."""
    grid = layout.input_grid
    pieces = (layout.in_features,) if grid is None else grid.pieces
    dual = (0,) if grid is None else tuple(int(flag) for flag in grid.dual)
    bits = 0 if grid is None else grid.spec.bits
    return (
        smooth, *scales, branches, pieces, dual, layout.weight_columns, layout.weight_spec.bits, bits,
        grid is not None and grid.zero_point,
    )  # fmt: skip
