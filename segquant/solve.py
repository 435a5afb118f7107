"""Quantize one linear from its weight and the statistics of its input; no other layer is needed.

plan -> smooth (per output and input segment) -> split off the low-rank branch -> scales and codes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from segquant import functional as F
from segquant.calibrators.gptq import shrink_gram
from segquant.errors import QuantizationError
from segquant.kernels.reference import expand_weight_scale, input_scales
from segquant.layout import Layout
from segquant.observe import InputStats
from segquant.optimizers.search import smooth_layer
from segquant.residual import Residual, calibrate_branch, choose_ranks
from segquant.segments import Segments
from segquant.spec import Method


def plan_layout(linear: nn.Linear, method: Method, segments: Segments | None, name: str) -> Layout:
    """Where the layer is cut and which inputs get a scale per sign, before any number is looked at.

    Input segments that the group size does not divide are not cut: the groups are the finer grid anyway.

    Raises:
        QuantizationError: the group size does not divide in_features, or the segments do not fit the layer.
    """
    scheme = method.scheme
    groups = [
        (side, spec.group_size)
        for side, spec in (("weight", scheme.weight), ("input", scheme.input))
        if spec is not None and spec.group_size
    ]
    for side, group in groups:
        if linear.in_features % group:
            raise QuantizationError(
                f"{name}: {side} groups of {group} do not divide its in_features {linear.in_features}; "
                f"leave it out with skip=[{name!r}] or choose another precision"
            )
    rows, columns, activations = _cuts(linear, method, segments, [group for _, group in groups])
    dual = tuple(method.dualscale and scheme.input is not None and bool(entry) for entry in activations)
    apart = method.optimizer != "none" and len(rows) > 1
    try:
        return Layout(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            scheme,
            rows,
            columns,
            dual,
            branches=rows if apart else (linear.out_features,),
            smooth=method.optimizer != "none",
        )
    except ValueError as error:
        raise QuantizationError(f"{name}: its segments do not fit: {error}") from error


def _cuts(
    linear: nn.Linear, method: Method, segments: Segments | None, groups: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str | None, ...]]:
    """Output cut, input cut, and the activation that each input piece comes out of."""
    rows: tuple[int, ...] = (linear.out_features,)
    columns: tuple[int, ...] = (linear.in_features,)
    if segments is None:
        return rows, columns, (None,)
    pieces = segments.input_activations
    if method.seglinear:
        rows = segments.output or rows
        if segments.input and pieces and not any(size % group for size in segments.input for group in groups):
            return rows, segments.input, pieces
    # an uncut input comes out of an activation if all of its pieces do
    whole = segments.activation or (pieces[0] if pieces and all(pieces) else None)
    return rows, columns, (whole,)


def solve_layer(
    linear: nn.Linear,
    method: Method,
    stats: InputStats | None,
    segments: Segments | None = None,
    *,
    name: str = "linear",
) -> tuple[Layout, dict[str, Tensor]]:
    """Layout and buffers of the quantized layer, on the weight's device; see `QuantLinear.from_float`."""
    layout = plan_layout(linear, method, segments, name)
    if method.needs_data and (stats is None or stats.rows == 0):
        raise QuantizationError(
            f"{name}: method {method.name!r} needs statistics of its input and calibration never "
            "called it; leave it out with `skip`, or set on_uncalled='skip'"
        )
    weight = linear.weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError(f"{name}: its weight contains NaN or inf")
    smooth, margin = None, None
    if layout.smooth:
        assert stats is not None
        smooth, margin = smooth_layer(weight, layout, method, stats)
    gram = shrink_gram(stats.gram, stats.rows) if method.needs_gram and stats is not None else None
    ranks = choose_ranks(weight, smooth, layout, method)
    residuals = _branches(weight, smooth, gram, layout, ranks, method)
    layout, tensors = _assemble(layout, residuals, ranks, linear)
    if smooth is not None:
        tensors["smooth"] = smooth
    if layout.scheme.static_input:
        assert stats is not None
        tensors.update(_static_scales(layout, stats, smooth, margin))
    return layout, tensors


def _branches(
    weight: Tensor,
    smooth: Tensor | None,
    gram: Tensor | None,
    layout: Layout,
    ranks: tuple[int, ...],
    method: Method,
) -> list[Residual]:
    """Every branch in its own smoothed space: W·s, and G / (s sᵀ)."""
    residuals = []
    for branch, rows in enumerate(layout.branch_slices):
        part, hessian = weight[rows], gram
        if smooth is not None:
            part = part * smooth[branch]
            hessian = gram / torch.outer(smooth[branch], smooth[branch]) if gram is not None else None
        size = layout.branches[branch]
        cut = layout.rows if len(layout.branches) == 1 else (size,)
        local = replace(layout, rows=cut, branches=(size,), out_features=size)
        residuals.append(calibrate_branch(part, hessian, local, ranks[branch], method))
    return residuals


def _assemble(
    layout: Layout, residuals: list[Residual], ranks: tuple[int, ...], linear: nn.Linear
) -> tuple[Layout, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {"weight_scale": torch.cat([entry.scale for entry in residuals])}
    quantized = torch.cat([entry.quantized for entry in residuals])
    scale = expand_weight_scale(tensors["weight_scale"], layout.weight_rows, layout.weight_columns)
    tensors["codes"] = _store(
        F.quantize(quantized, scale, layout.weight_spec.dtype), layout.weight_spec.dtype
    )
    if any(ranks):
        factors = [
            (entry.up, entry.down) for entry in residuals if entry.up is not None and entry.down is not None
        ]
        half = factors[0][0].dtype
        if any(up.dtype != half for up, _ in factors):
            half = torch.bfloat16
        layout = replace(layout, ranks=ranks, half=str(half).removeprefix("torch."))
        tensors["low_rank_down"] = torch.cat([down.to(half) for _, down in factors]).contiguous()
        tensors["low_rank_up"] = torch.cat([up.to(half).flatten() for up, _ in factors])
    if linear.bias is not None:
        tensors["bias"] = linear.bias.detach().clone()
    return layout, tensors


def _store(codes: Tensor, dtype: str) -> Tensor:
    if dtype == "int4":
        return F.pack_int4(codes)
    return codes.view(torch.uint8) if dtype == "fp8" else codes


def _static_scales(
    layout: Layout, stats: InputStats, smooth: Tensor | None, margin: Tensor | None
) -> dict[str, Tensor]:
    """Activation scales of all branches from all calibration rows (held-out ones included)."""
    positive, negative = stats.positive, stats.negative
    if smooth is None:
        positive, negative = positive[None], negative[None]
    else:
        positive, negative = positive / smooth, negative / smooth
    if margin is not None:
        headroom = F.expand_pieces(margin, layout.columns)
        positive, negative = positive * headroom, negative * headroom
    assert layout.scheme.input is not None
    above, below = input_scales(
        F.piece_max(positive, layout.input_columns),
        F.piece_max(negative, layout.input_columns),
        layout.input_dual,
        layout.scheme.input,
    )
    return {"input_scale": above, **({"input_scale_negative": below} if layout.any_dual else {})}
