"""Quantize one linear from its weight and the statistics of its input; no other layer is needed.

plan -> smooth (per output and input segment) -> split off the low-rank branch -> scales and codes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segquant import functional as F
from segquant.calibrators.amax import weight_scale
from segquant.calibrators.gptq import gptq
from segquant.errors import QuantizationError
from segquant.kernels.reference import expand_weight_scale, input_scales, quantize_input
from segquant.layout import HALF, Layout, group_pieces, slices
from segquant.observe import HeldOut, InputStats
from segquant.optimizers.smooth import search_alpha, smoothing
from segquant.optimizers.svd import low_rank, random_low_rank, weighted_low_rank
from segquant.segments import Segments
from segquant.spec import SEARCH, Method

log = logging.getLogger(__name__)

FLOAT16_MAX = 6e4


@dataclass(frozen=True)
class Residual:
    """One branch, calibrated: weight on the grid [rows, in], its scales, and the low-rank factors (or None)."""

    quantized: Tensor
    scale: Tensor
    up: Tensor | None = None
    down: Tensor | None = None


def plan_layout(linear: nn.Linear, method: Method, segments: Segments | None, name: str) -> Layout:
    """Where the layer is cut and which inputs get a scale per sign, before any number is looked at.

    Input segments that the group size does not divide are not cut: the groups are the finer grid anyway.

    Raises:
        QuantizationError: the group size does not divide in_features, or the segments do not fit the layer.
    """
    scheme = method.scheme
    for side, spec in (("weight", scheme.weight), ("input", scheme.input)):
        if spec is not None and spec.group_size and linear.in_features % spec.group_size:
            raise QuantizationError(f"{name}: {side} groups of {spec.group_size} do not divide its in_features "
                                    f"{linear.in_features}; leave it out with skip=[{name!r}] or choose another precision")
    rows: tuple[int, ...] = (linear.out_features,)
    columns: tuple[int, ...] = (linear.in_features,)
    activations: tuple[str | None, ...] = (None,)
    if segments is not None:
        activations = (segments.activation,)
        pieces = segments.input_activations
        if segments.activation is None and pieces and all(pieces):
            activations = (pieces[0],)
        if method.seglinear:
            rows = segments.output or rows
            groups = [spec.group_size for spec in (scheme.weight, scheme.input) if spec and spec.group_size]
            if segments.input and not any(size % group for size in segments.input for group in groups):
                columns = segments.input
                activations = pieces or (segments.activation,) * len(columns)
    dual = tuple(method.dualscale and scheme.input is not None and bool(entry) for entry in activations)
    apart = method.optimizer != "none" and len(rows) > 1
    try:
        return Layout(linear.in_features, linear.out_features, linear.bias is not None, scheme, rows, columns, dual,
                      branches=rows if apart else (linear.out_features,), smooth=method.optimizer != "none")
    except ValueError as error:
        raise QuantizationError(f"{name}: its segments do not fit: {error}") from error


def solve_layer(linear: nn.Linear, method: Method, stats: InputStats | None, segments: Segments | None = None,
                *, name: str = "linear") -> tuple[Layout, dict[str, Tensor]]:
    """Layout and buffers of the quantized layer, on the weight's device; see `QuantLinear.from_float`."""
    layout = plan_layout(linear, method, segments, name)
    if method.needs_data and (stats is None or stats.rows == 0):
        raise QuantizationError(f"{name}: method {method.name!r} needs statistics of its input and calibration never "
                                "called it; leave it out with `skip`, or set on_uncalled='skip'")
    weight = linear.weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError(f"{name}: its weight contains NaN or inf")
    smooth = _smooth(weight, layout, method, stats) if layout.smooth else None
    gram = stats.gram if method.needs_gram and stats is not None else None
    ranks = _ranks(weight, smooth, layout, method)
    residuals = []
    for branch, rows in enumerate(layout.branch_slices):
        part, hessian = weight[rows], gram
        if smooth is not None:
            part = part * smooth[branch]
            hessian = gram / torch.outer(smooth[branch], smooth[branch]) if gram is not None else None
        cut = layout.rows if len(layout.branches) == 1 else (layout.branches[branch],)
        residuals.append(_residual(part, hessian, replace(layout, rows=cut, branches=(sum(cut),),
                                                          out_features=sum(cut)), ranks[branch], method))
    return _assemble(layout, residuals, ranks, smooth, stats, linear)


def _assemble(layout: Layout, residuals: list[Residual], ranks: tuple[int, ...], smooth: Tensor | None,
              stats: InputStats | None, linear: nn.Linear) -> tuple[Layout, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {"weight_scale": torch.cat([entry.scale for entry in residuals])}
    quantized = torch.cat([entry.quantized for entry in residuals])
    scale = expand_weight_scale(tensors["weight_scale"], layout.weight_rows, layout.weight_columns)
    tensors["codes"] = _store(F.quantize(quantized, scale, layout.weight_spec.dtype), layout.weight_spec.dtype)
    if smooth is not None:
        tensors["smooth"] = smooth
    if layout.scheme.static_input:
        assert stats is not None
        tensors.update(_static_scales(layout, stats, smooth))
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


def _static_scales(layout: Layout, stats: InputStats, smooth: Tensor | None) -> dict[str, Tensor]:
    """Activation scales of all branches from all calibration rows (held-out ones included)."""
    divisor = smooth if smooth is not None else torch.ones(1, layout.in_features, device=stats.positive.device)
    positive = F.piece_max(stats.positive / divisor, layout.input_columns)
    negative = F.piece_max(stats.negative / divisor, layout.input_columns)
    assert layout.scheme.input is not None
    above, below = input_scales(positive, negative, layout.input_dual, layout.scheme.input)
    return {"input_scale": above, **({"input_scale_negative": below} if layout.any_dual else {})}


def _smooth(weight: Tensor, layout: Layout, method: Method, stats: InputStats | None) -> Tensor:
    """Smoothing vectors [branches, in]: every output and input segment with its own α."""
    assert stats is not None
    amax = torch.maximum(stats.positive, stats.negative).to(weight.device)
    smooth = torch.ones(len(layout.branches), layout.in_features, device=weight.device)
    splits = stats.held_out() if method.alpha == SEARCH else []
    for branch, rows in enumerate(layout.branch_slices):
        for index, columns in enumerate(slices(layout.columns)):
            block = weight[rows, columns]
            alpha: float | None
            if method.alpha == SEARCH:
                pieces = [HeldOut(s.positive[columns], s.negative[columns], s.rows[:, columns]) for s in splits]
                alpha, errors = search_alpha(block, pieces, _Simulation(layout, method, branch, index))
                log.debug("%s branch %d piece %d: alpha %s of %s", stats.name, branch, index, alpha, errors)
            else:
                alpha = float(method.alpha)
            if alpha is not None:
                smooth[branch, columns] = smoothing(amax[columns], block.abs().amax(0), alpha)
    return smooth


class _Simulation:
    """One block (output branch × input segment) of the quantized layer, rounded to nearest, for the α search."""

    def __init__(self, layout: Layout, method: Method, branch: int, index: int) -> None:
        rows, width = layout.branches[branch], layout.columns[index]
        self.weight_spec, self.input_spec, self.seed = layout.weight_spec, layout.scheme.input, method.seed
        self.dual = layout.dual[index]
        cut = layout.rows if len(layout.branches) == 1 else (rows,)
        self.rows = cut if self.weight_spec.granularity == "tensor" else (1,) * rows
        group = self.weight_spec.group_size
        self.columns = group_pieces((width,), group) if group else (width,)
        group = self.input_spec.group_size if self.input_spec else None
        self.pieces = group_pieces((width,), group) if group else (width,)
        share = _share(layout, method) * width / layout.in_features
        self.rank = max(1, round(share)) if method.optimizer == "svd" else 0

    def __call__(self, weight: Tensor, split: HeldOut) -> Tensor:
        residual, extra = weight, None
        if self.rank:
            up, down = random_low_rank(weight, self.rank, self.seed)
            residual, extra = weight - up @ down, (split.rows @ down.T) @ up.T
        scale = weight_scale(residual, self.weight_spec.dtype, self.rows, self.columns)
        wide = expand_weight_scale(scale, self.rows, self.columns)
        out = self._input(split) @ F.fake_quantize(residual, wide, self.weight_spec.dtype).T
        return out if extra is None else out + extra

    def _input(self, split: HeldOut) -> Tensor:
        spec = self.input_spec
        if spec is None:
            return split.rows
        dual, static = (self.dual,) * len(self.pieces), None
        if not spec.dynamic:
            static = input_scales(F.piece_max(split.positive, self.pieces),
                                  F.piece_max(split.negative, self.pieces), dual, spec)
        return quantize_input(split.rows, self.pieces, dual, spec, static)


def _share(layout: Layout, method: Method) -> float:
    """Rank of one branch if the whole layer's rank-r budget of r · (in + out) numbers is dealt evenly."""
    total = sum(layout.in_features + rows for rows in layout.branches)
    return method.rank * (layout.in_features + layout.out_features) / total


def _ranks(weight: Tensor, smooth: Tensor | None, layout: Layout, method: Method) -> tuple[int, ...]:
    """Rank of each branch: the budget of one rank-r branch on the whole layer goes where the energy is."""
    if method.optimizer != "svd" or smooth is None:
        return (0,) * len(layout.branches)
    if len(layout.branches) == 1:
        return (min(method.rank, layout.in_features, layout.out_features),)
    gains: list[tuple[float, int, int]] = []
    for branch, rows in enumerate(layout.branch_slices):
        cost = layout.in_features + layout.branches[branch]
        energies = torch.linalg.svdvals((weight[rows] * smooth[branch]).double()).square() / cost
        gains += [(float(energy), branch, cost) for energy in energies]
    left, ranks = method.rank * (layout.in_features + layout.out_features), [0] * len(layout.branches)
    for _, branch, cost in sorted(gains, key=lambda gain: -gain[0]):
        if cost > left:
            break
        left -= cost
        ranks[branch] += 1
    return tuple(ranks)


def _residual(weight: Tensor, hessian: Tensor | None, layout: Layout, rank: int, method: Method) -> Residual:
    """Calibrate one branch; with a low-rank branch, optionally refit it to what the quantizer left."""
    if not rank:
        return Residual(*_calibrate(weight, hessian, layout, method))
    up, down = _half(*low_rank(weight, rank))
    quantized, scale = _calibrate(weight - up.float() @ down.float(), hessian, layout, method)
    best = Residual(quantized, scale, up, down)
    if not method.iterations or hessian is None:
        return best
    error = _error(weight, best, hessian)
    for _ in range(method.iterations):
        up, down = _half(*weighted_low_rank(weight - quantized, hessian, rank))
        candidates = [Residual(quantized, scale, up, down)]
        quantized, scale = _calibrate(weight - up.float() @ down.float(), hessian, layout, method)
        candidates.append(Residual(quantized, scale, up, down))
        for candidate in candidates:
            found = _error(weight, candidate, hessian)
            if found < error:
                best, error = candidate, found
    return best


def _half(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    peak = max(float(up.abs().amax()), float(down.abs().amax()))
    half = HALF["float16" if peak < FLOAT16_MAX else "bfloat16"]
    return up.to(half), down.to(half)


def _error(weight: Tensor, found: Residual, hessian: Tensor) -> float:
    """||X(W − Q − UD)ᵀ||² up to a factor."""
    assert found.up is not None and found.down is not None
    left = weight - found.quantized - found.up.float() @ found.down.float()
    return float(((left @ hessian.to(left.dtype)) * left).sum(dtype=torch.float64))


def _calibrate(weight: Tensor, hessian: Tensor | None, layout: Layout, method: Method) -> tuple[Tensor, Tensor]:
    """Weight on its grid, and the scales [rows, columns] of that grid."""
    dtype = layout.weight_spec.dtype
    scale = weight_scale(weight, dtype, layout.weight_rows, layout.weight_columns)
    wide = expand_weight_scale(scale, layout.weight_rows, layout.weight_columns)
    if method.calibrator == "gptq":
        assert hessian is not None
        return gptq(weight, hessian, wide, dtype, damp=method.damp, act_order=method.act_order), scale
    return F.fake_quantize(weight, wide, dtype), scale
