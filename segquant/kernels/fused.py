"""What backends share whose operator does a layer at once: quantize rows, multiply codes, scale, add."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from segquant.kernels.backend import Backend
from segquant.kernels.integers import kernel_bits, kernel_codes, row_scales
from segquant.modules.state import exact_products
from segquant.numerics.layout import Layout
from segquant.transforms.chain import chain_of
from segquant.transforms.low_rank import LowRank
from segquant.transforms.smoothing import Smoothing

First = tuple[Tensor, Tensor | None, Tensor | None]
"""Of low-rank branches: the first factor as it is kept, [ranks, in]; the smoothing before it, [branches, in], or none;
the branch of each rank, if there are several."""


@dataclass(frozen=True)
class Packed:
    """The layer's own tensors, and its weight's codes and scales as the operator reads them.

    Args:
        codes: see `kernel_codes`; `weight_scale`: [out, groups].
        ranks: of the low-rank branches beside the operator's product, or none.
        first: what `first_factor` takes; with `ranks`.
        bias: as it is kept, so that what is written to it holds.
        form: the operator's last arguments, if it does all of the input's part.
        extra: what only one backend needs.
    """

    tensors: Mapping[str, Tensor]
    codes: Tensor
    weight_scale: Tensor
    ranks: tuple[int, ...]
    first: First | None
    bias: Tensor | None
    form: tuple[Any, ...] | None = None
    extra: Any = None

    def arguments(self, added: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of the operator, after the input; see `FusedBackend.added`."""
        form: Any = self.form
        bias = None if self.bias is None else self.bias.float()
        return self.codes, self.weight_scale, bias, *added, *form


Product = Callable[[Tensor, tuple[Any, ...], Any], Tensor]
Scales = tuple[Tensor | None, Tensor | None, Tensor | None]
"""For x ≥ 0, below, and zero points, [branches, pieces]; None: by the operator, from each row."""


class FusedBackend(Backend):
    """Weights of 8 and 4 bits stay as they are stored, others are spread to these once; `product` is the operator.

    The operator does smoothings, static scales and scales by row or group. Other transforms, and scales of the whole
    input at run time, are plain torch before it.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]]
    """Inputs that the operator reads and outputs that it writes; others pass as float32."""
    half_scales: ClassVar[bool] = False
    """Whether the operator reads a weight's scales in bfloat16 and float16 as well: no copy in float32 then."""
    half_branch: ClassVar[bool] = False
    """Whether bfloat16 inputs take the low-rank branch in bfloat16; float32 otherwise."""

    @abstractmethod
    def product(self, rows: Tensor, arguments: tuple[Any, ...], extra: Any) -> Tensor:
        """[rows, in] -> [rows, out]; see `Packed.arguments`, and `extra_of`."""

    def extra_of(self, layout: Layout, codes: Tensor) -> Any:
        """What only this backend needs, made once."""

    def added(self, beside: Tensor | None, inner: Tensor | None, layout: Layout, packed: Packed) -> tuple[Any, ...]:
        """The operator's arguments of what is added to the product.

        Args:
            beside: [rows, out], or none.
            inner: low-rank branches' part of the way, [rows, ranks]; never with `beside`.
        """
        return (beside if inner is None else beside_of(inner, layout, packed),)

    def extra_part(self, extra: Any, cut: slice) -> Any:
        """`extra` for some of the outputs."""

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Packed:
        codes, scale = kernel_codes(layout, tensors), row_scales(layout, tensors, self.half_scales)
        inside = is_inside(layout)
        bias = tensors["bias"] if layout.bias else None
        form = _form(layout, tensors.get("smooth"), _static(tensors), layout.branches) if inside else None
        ranks = _ranks(layout) if inside else ()
        first = _first(tensors, ranks) if ranks else None
        return Packed(tensors, codes, scale, ranks, first, bias, form, self.extra_of(layout, codes))

    def linear(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        return self.at_once(x, layout, packed, self.product)

    def at_once(self, x: Tensor, layout: Layout, packed: Packed, product: Product) -> Tensor:
        """[..., in] -> [..., out] by an operator with the arguments of `product`."""
        with exact_products(x.device):
            rows = self.known(x.reshape(-1, layout.in_features)).contiguous()
            if packed.form is None:
                out = self._by_branch(rows, layout, packed)
            else:
                added = self.added(None, self._low_rank(rows, packed), layout, packed)
                out = product(rows, packed.arguments(added), packed.extra)
            if x.dim() != 2:
                out = out.reshape(*x.shape[:-1], layout.out_features)
            return out if out.dtype is x.dtype else out.to(x.dtype)

    def known(self, x: Tensor) -> Tensor:
        """In a dtype that the operator reads."""
        return x if x.dtype in self.dtypes else x.float()

    def _low_rank(self, rows: Tensor, packed: Packed) -> Tensor | None:
        """[rows, ranks] of all branches."""
        if packed.first is None:
            return None
        kind = torch.bfloat16 if self.half_branch and rows.dtype == torch.bfloat16 else torch.float32
        return rows.to(kind) @ first_factor(packed.first).to(kind).T

    def _by_branch(self, rows: Tensor, layout: Layout, packed: Packed) -> Tensor:
        """Transforms in plain torch, the rest in the operator."""
        outputs = []
        for branch, cut in enumerate(layout.branch_slices):
            x, added = chain_of(layout, packed.tensors, branch).run(rows.float())
            constant = [each for each in added if each.dim() == 1]
            wide = [each for each in added if each.dim() > 1]
            beside = sum(wide[1:], wide[0]).contiguous() if wide else None
            size = layout.branches[branch]
            if packed.bias is not None:
                constant = [*constant, packed.bias[cut]]
            bias = sum(constant[1:], constant[0]) if constant else None
            form = _form(layout, None, _scales_of(x, layout, packed, branch), (size,))
            part = Packed({}, packed.codes[cut], packed.weight_scale[cut], (), None, bias, form)
            extra = self.extra_part(packed.extra, cut)
            outputs.append(self.product(x.contiguous(), part.arguments(self.added(beside, None, layout, part)), extra))
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        return out.to(rows.dtype)


def is_inside(layout: Layout) -> bool:
    """Whether the operator does all of the input's part: a smoothing, low-rank branches, scales fixed or by row."""
    spec = layout.scheme.input
    known = [type(transform) for transform in layout.transforms]
    of_all = spec is not None and spec.dynamic and spec.granularity == "tensor"
    return not of_all and known in ([], [Smoothing], [LowRank], [Smoothing, LowRank])


def _ranks(layout: Layout) -> tuple[int, ...]:
    low_rank = layout.transform("low_rank")
    return low_rank.ranks if isinstance(low_rank, LowRank) and any(low_rank.ranks) else ()


def _first(tensors: Mapping[str, Tensor], ranks: tuple[int, ...]) -> First:
    down, smooth = tensors["low_rank_down"], tensors.get("smooth")
    if smooth is None or len(ranks) == 1:
        return down, smooth, None
    branches = [branch for branch, rank in enumerate(ranks) for _ in range(rank)]
    return down, smooth, torch.tensor(branches, dtype=torch.int64, device=smooth.device)


def first_factor(first: First) -> Tensor:
    """Of all branches, on the input as it comes, float32 [ranks, in].

    Made at each call, with the smoothing undone: a float32 copy would be twice what the layer keeps, and one of 16 bits
    rounded once more.
    """
    down, smooth, branches = first
    if smooth is None:
        return down.float()
    return down / (smooth if branches is None else smooth[branches])


def beside_of(inner: Tensor, layout: Layout, packed: Packed) -> Tensor:
    """What low-rank branches add, [rows, out], from [rows, ranks]."""
    low_rank, found = layout.transform("low_rank"), []
    assert isinstance(low_rank, LowRank)
    for branch, part in enumerate(inner.split(list(packed.ranks), 1)):
        up = low_rank.factors(layout.place(packed.tensors, branch))[1]
        found.append(part @ up.to(part.dtype).T)
    return found[0] if len(found) == 1 else torch.cat(found, 1)


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
    """The operators' arguments after what is added."""
    grid = layout.input_grid
    pieces = (layout.in_features,) if grid is None else grid.pieces
    dual = (0,) if grid is None else tuple(int(flag) for flag in grid.dual)
    bits = 0 if grid is None else grid.spec.bits
    return (
        smooth, *scales, branches, pieces, dual, layout.weight_columns,
        kernel_bits(layout.weight_spec), bits, grid is not None and grid.zero_point,
    )  # fmt: skip
