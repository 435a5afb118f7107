"""Quantize one linear from its weight and the statistics of its input; no other layer is needed.

plan -> smooth (per output and input segment) -> rotate -> split off the low-rank branch -> scales and codes -> bias.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from segquant.calibrators.bias import sample_bias_correction
from segquant.calibrators.gptq import Factor, factorize, shrink_gram
from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.kernels.reference import expand_weight_scale, input_scales
from segquant.kernels.reference import linear as quantized_linear
from segquant.method.spec import Method
from segquant.numerics import functional as F
from segquant.numerics.layout import Layout
from segquant.numerics.transform import Transform
from segquant.observers.stats import InputStats
from segquant.optimizers.search import Alphas, Smoothing, layer_signs, needs_margin, smooth_layer
from segquant.ranges.pick import needs_rows, pick_input_range
from segquant.solve.branch import SolvedBranch, calibrate_branch, choose_ranks
from segquant.solve.lay_out import lay_out_layer


def solve_layer(
    linear: nn.Linear,
    method: Method,
    stats: InputStats | None,
    segments: Segments | None = None,
    *,
    name: str = "linear",
    smoothing: Smoothing | None = None,
    alphas: Alphas | None = None,
    factors: dict[int, Factor] | None = None,
    taps: int = 1,
) -> tuple[Layout, dict[str, Tensor], Smoothing | None]:
    """Layout and buffers of the quantized layer, on the weight's device; see `QuantLinear.from_float`.

    Args:
        smoothing: of an earlier call with the same statistics, cuts and optimizer, to spare its search.
        alphas: of an earlier call with the same cuts, to spare the search for α alone.
        factors: GPTQ's, by branch, of an earlier call with that smoothing; those it lacks are added.
        taps: columns per input channel: those of a convolution's kernel, of which `linear` is the product.

    Returns:
        layout, buffers, and the smoothing used, None without one.
    """
    layout = lay_out_layer(linear, method, segments, name, taps)
    if method.needs_data and (stats is None or stats.rows == 0):
        raise QuantizationError(
            f"{name}: method {method.name!r} needs statistics of its input and calibration never "
            "called it; leave it out with `skip`, or set on_uncalled='skip'"
        )
    weight = linear.weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError(f"{name}: its weight contains NaN or inf")
    if smoothing is None and (layout.smooth or needs_margin(layout, method)):
        assert stats is not None
        smoothing = smooth_layer(weight, layout, method, stats, alphas)
    smooth = smoothing.vectors if smoothing is not None and layout.smooth else None
    signs = layer_signs(layout, method, weight.device)
    transforms = [
        Transform(None if smooth is None else smooth[branch], signs, layout.rotation_blocks)
        for branch in range(len(layout.branches))
    ]
    ranks = choose_ranks(weight, smooth, layout, method, name)
    residuals = _branches(weight, transforms, stats, layout, ranks, method, {} if factors is None else factors)
    layout, tensors = _assemble(layout, residuals, ranks, linear)
    if smooth is not None:
        tensors["smooth"] = smooth
    if signs is not None:
        tensors["rotation_signs"] = signs
    if layout.scheme.static_input:
        assert stats is not None
        tensors.update(_static_scales(weight, layout, stats, transforms, smoothing, method))
    if method.bias_correction:
        assert stats is not None
        layout, tensors = correct_bias(linear, layout, tensors, stats)
    return layout, tensors, smoothing


def _branches(
    weight: Tensor,
    transforms: list[Transform],
    stats: InputStats | None,
    layout: Layout,
    ranks: tuple[int, ...],
    method: Method,
    factors: dict[int, Factor],
) -> list[SolvedBranch]:
    """Every branch in its own transformed space."""
    gram = shrink_gram(stats.gram, stats.rows) if method.needs_gram and stats is not None else None
    sample = stats.sample if method.ranges == "mse" and stats is not None else None
    residuals = []
    for branch, (rows, transform) in enumerate(zip(layout.branch_slices, transforms, strict=True)):
        hessian = None if gram is None else transform.gram(gram)
        importance = None if sample is None else transform.rows(sample).square().mean(0)
        size = layout.branches[branch]
        cut = layout.rows if len(layout.branches) == 1 else (size,)
        local = replace(layout, rows=cut, branches=(size,), out_features=size)
        part = transform.weight(weight[rows])
        if method.calibrator == "gptq" and branch not in factors:
            assert hessian is not None
            factors[branch] = factorize(hessian, method.damp, method.act_order)
        factor = factors[branch] if method.calibrator == "gptq" else None
        residuals.append(calibrate_branch(part, hessian, local, ranks[branch], method, importance, factor))
    return residuals


def _assemble(
    layout: Layout, residuals: list[SolvedBranch], ranks: tuple[int, ...], linear: nn.Linear
) -> tuple[Layout, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {"weight_scale": torch.cat([entry.scale for entry in residuals])}
    quantized = torch.cat([entry.quantized for entry in residuals])
    scale = expand_weight_scale(tensors["weight_scale"], layout.weight_rows, layout.weight_columns)
    tensors["codes"] = _store(F.quantize(quantized, scale, layout.weight_spec.dtype), layout.weight_spec.dtype)
    if any(ranks):
        factors = [(entry.up, entry.down) for entry in residuals if entry.up is not None and entry.down is not None]
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
    weight: Tensor,
    layout: Layout,
    stats: InputStats,
    transforms: list[Transform],
    smoothing: Smoothing | None,
    method: Method,
) -> dict[str, Tensor]:
    """Activation scales of all branches from all calibration rows (held-out ones included)."""
    spec = layout.scheme.input
    assert spec is not None
    sample = stats.sample if needs_rows(method) else None
    ranges = []
    for rows, transform in zip(layout.branch_slices, transforms, strict=True):
        smooth = transform.smooth
        positive, negative = (x if smooth is None else x / smooth for x in (stats.positive, stats.negative))
        seen = None if sample is None else transform.rows(sample)
        importance = None if sample is None else transform.weight(weight[rows]).square().sum(0)
        ranges.append(
            pick_input_range(
                positive, negative, seen, layout.input_columns, layout.input_dual, spec, method, importance
            )
        )
    positive, negative = (torch.stack(side) for side in zip(*ranges, strict=True))
    if smoothing is not None:
        positive, negative = positive * smoothing.margin, negative * smoothing.margin
    above, below = input_scales(positive, negative, layout.input_dual, spec)
    return {"input_scale": above, **({"input_scale_negative": below} if layout.any_dual else {})}


def correct_bias(
    linear: nn.Linear, layout: Layout, tensors: dict[str, Tensor], stats: InputStats
) -> tuple[Layout, dict[str, Tensor]]:
    """The solved layer with its mean error on the sampled rows moved into its bias, which it gets if it has none."""
    sample, bias = stats.sample, linear.bias
    target = nn.functional.linear(sample, linear.weight.detach().float())
    if bias is not None:
        target = target + bias.detach().float()
    error = sample_bias_correction(target, quantized_linear(sample, layout, tensors), min(stats.calls, len(sample)))
    dtype = linear.weight.dtype if bias is None else bias.dtype
    corrected = error if bias is None else error + bias.detach().float()
    return replace(layout, bias=True), {**tensors, "bias": corrected.to(dtype)}
