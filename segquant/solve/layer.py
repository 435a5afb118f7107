"""Quantize one linear from its weight and the statistics of its input.

lay out -> optimize (per segment) -> rotate -> round, perhaps split -> scales -> bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segquant.calibrators.bias import sample_bias_correction
from segquant.calibrators.gptq import shrink_gram
from segquant.calibrators.protocol import Calibrator, Inputs
from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.kernels.reference import REFERENCE
from segquant.method.spec import Method
from segquant.modules.state import own_state
from segquant.numerics import functional as F
from segquant.numerics.fake_quant import expand_weight_scale, store_codes
from segquant.numerics.layout import Layout
from segquant.numerics.weight_grid import WeightScales
from segquant.observers.stats import InputStats
from segquant.optimizers.protocol import Branch, Fitted, Problem, Rounded
from segquant.optimizers.simulation import extremes_of
from segquant.solve.folding import take_out
from segquant.solve.lay_out import lay_out_pieces, one_scale
from segquant.solve.one_product import fold, folded, shift, shift_product
from segquant.transforms.chain import Chain, chain_of, hides_range

Prepared = dict[tuple[Calibrator | str, int], Any]
"""What calibrators made of a layer's inputs, by branch (GPTQ's factors), and their IMPORTANCE to ranges of weights."""
IMPORTANCE = "importance"


@own_state()
def solve_layer(
    linear: nn.Linear,
    method: Method,
    stats: InputStats | None,
    segments: Segments | None = None,
    *,
    name: str = "linear",
    fitted: Fitted | None = None,
    known: Any = None,
    prepared: Prepared | None = None,
    taps: int = 1,
    shared: Fitted | None = None,
) -> tuple[Layout, dict[str, Tensor], Fitted]:
    """Layout and buffers of the quantized layer, on the weight's device; and what the optimizer found.

    Args:
        fitted: of a call with the same statistics, cuts, ranges and `search_key`.
        known: `Fitted.found` of one with the same cuts and `search_key`.
        prepared: of a call with that fit; what it lacks is added.
        taps: columns per input channel.
        shared: what layers with the same input found together; its vector then counts as folded into the producer.
    """
    layout = lay_out_pieces(linear, method, segments, name, taps)
    if shared is not None:
        layout, fitted = replace(layout, branches=(layout.out_features,)), shared
    if method.needs and (stats is None or stats.rows == 0):
        raise QuantizationError(
            f"{name}: method {method.name!r} needs statistics of its input and calibration never "
            "called it; leave it out with `skip`, or set on_uncalled='skip'"
        )
    weight = linear.weight.detach().float()
    if weight.device.type == "meta":
        raise QuantizationError(f"{name}: its weight has no values (it is on meta); load the model's weights first")
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError(f"{name}: its weight contains NaN or inf")
    problem = problem_of(weight, layout, stats, method, name, known)
    if fitted is None:
        fitted = method.optimizer.fit(problem)
    found = fitted
    if one_scale(layout, method):
        fitted = fold(problem, fitted)
    if layout.negative == "shift" and any(layout.dual):
        fitted = shift(problem, fitted)
    if one_scale(layout, method):
        layout = folded(layout)
    # contiguous, as a saved layer's are when they are loaded again: strides change the order of sums
    tensors = {key: tensor.contiguous() for key, tensor in {**fitted.tensors, **problem.turn_tensors}.items()}
    layout = replace(layout, transforms=(*fitted.transforms, *problem.turn))
    chains = [chain_of(layout, tensors, branch) for branch in range(len(layout.branches))]
    branches = _branches(problem, chains, layout, method, {} if prepared is None else prepared)
    rounded = method.optimizer.round(branches, problem, fitted)
    if layout.scheme.static_input:
        tensors |= _static_scales(problem, chains, layout, fitted)
    layout = replace(layout, transforms=(*layout.transforms, *rounded.transforms))
    tensors |= _codes(layout, rounded)
    tensors |= shift_product(layout, tensors)
    _check(layout, tensors, method, name)
    if linear.bias is not None:
        tensors["bias"] = linear.bias.detach().clone()
    if method.bias_correction:
        assert stats is not None
        layout, tensors = correct_bias(linear, layout, tensors, stats)
    return (*(take_out(layout, tensors) if shared is not None else (layout, tensors)), found)


def _check(layout: Layout, tensors: Mapping[str, Tensor], method: Method, name: str) -> None:
    for key, (shape, dtype) in layout.buffers().items():
        found = tensors.get(key)
        if found is None or (tuple(found.shape), found.dtype) != (tuple(shape), dtype):
            what = "nothing" if found is None else f"{list(found.shape)} {found.dtype}"
            raise QuantizationError(
                f"{name}: optimizer {method.optimizer.name!r} gave {what} for buffer {key!r}, which is to be "
                f"{list(shape)} {dtype}; correct its fit or its transform's buffers"
            )


def problem_of(
    weight: Tensor, layout: Layout, stats: InputStats | None, method: Method, name: str, known: Any = None
) -> Problem:
    """What the method's optimizer sees of a layer."""
    rotation = method.rotation
    if rotation is None:
        return Problem(
            weight, layout, stats, method.ranges, seed=method.seed, name=name, known=known, headroom=method.headroom
        )
    turned = rotation.fit(layout, method.seed, weight.device)
    return Problem(
        weight, layout, stats, method.ranges, (rotation.transform,), turned, method.seed, name, known, method.headroom
    )


def _branches(
    problem: Problem, chains: list[Chain], layout: Layout, method: Method, prepared: Prepared
) -> Iterator[Branch]:
    """Every branch in its transformed space."""
    stats, needs, calibrator = problem.stats, method.needs, method.calibrator
    gram = _gram(stats, method) if "gram" in needs and stats is not None else None
    weighs = "stats" in method.ranges.needs and stats is not None
    looks = "stats" in calibrator.needs and stats is not None
    for branch, (rows, chain) in enumerate(zip(layout.branch_slices, chains, strict=True)):
        turned = None if gram is None else chain.gram(gram)
        waits = weighs and (IMPORTANCE, branch) not in prepared
        seen = chain.rows(stats.sample) if stats is not None and (waits or looks) else None
        if seen is not None and waits:
            prepared[IMPORTANCE, branch] = seen.square().mean(0)
        importance = prepared[IMPORTANCE, branch] if weighs else None
        if (calibrator, branch) not in prepared:
            inputs = Inputs(turned if "gram" in calibrator.needs else None, seen if looks else None)
            prepared[calibrator, branch] = calibrator.prepare(inputs)
        size = layout.branches[branch]
        cut = layout.rows if len(layout.branches) == 1 else (size,)
        local = replace(layout, rows=cut, branches=(size,), out_features=size, transforms=())
        rounding = _Rounding(method, local, importance, prepared[calibrator, branch])
        yield Branch(chain.weight(problem.weight[rows]), turned, rounding)


def _gram(stats: InputStats, method: Method) -> Tensor:
    return shrink_gram(stats.gram, stats.rows, method.gram_shrinkage)


class _Rounding:
    """From a branch's weight [rows, in] to it on its grid, and the grid's scales."""

    def __init__(self, method: Method, layout: Layout, importance: Tensor | None, prepared: Any) -> None:
        self.method, self.layout, self.importance, self.prepared = method, layout, importance, prepared

    def __call__(self, weight: Tensor) -> tuple[Tensor, WeightScales]:
        spec, rows, columns = self.layout.weight_spec, self.layout.weight_rows, self.layout.weight_columns
        scales = self.method.ranges.weight_scales(weight, spec, rows, columns, self.importance)
        wide = expand_weight_scale(scales.scale, rows, columns)
        if scales.offset is None:
            return self.method.calibrator.round(weight, wide, spec.dtype, self.prepared), scales
        # calibrators see codes times scales: what codes count from only moves the weight
        offset = expand_weight_scale(scales.offset, rows, columns)
        return self.method.calibrator.round(weight - offset, wide, spec.dtype, self.prepared) + offset, scales


def _codes(layout: Layout, rounded: Rounded) -> dict[str, Tensor]:
    spec, weight = layout.weight_spec, torch.cat(rounded.quantized)
    stored = {name: torch.cat([each.stored[name] for each in rounded.scales]) for name in rounded.scales[0].stored}
    scale, offset = (
        None if part is None else expand_weight_scale(part, layout.weight_rows, layout.weight_columns)
        for part in (torch.cat([each.scale for each in rounded.scales]), _offsets(rounded))
    )
    assert scale is not None
    codes = store_codes(F.quantize(weight if offset is None else weight - offset, scale, spec.dtype), spec)
    own = {key: tensor.contiguous() for key, tensor in rounded.tensors.items()}
    return {**stored, "codes": codes, **own}


def _offsets(rounded: Rounded) -> Tensor | None:
    found = [each.offset for each in rounded.scales]
    return None if found[0] is None else torch.cat([offset for offset in found if offset is not None])


def _static_scales(problem: Problem, chains: list[Chain], layout: Layout, fitted: Fitted) -> dict[str, Tensor]:
    grid, stats = layout.input_grid, problem.stats
    assert grid is not None and stats is not None
    looks = hides_range(layout.transforms) or problem.ranges.input_rows
    found = []
    for rows, chain in zip(layout.branch_slices, chains, strict=True):
        seen = chain.rows(stats.sample) if looks else None
        importance = chain.weight(problem.weight[rows]).square().sum(0) if looks else None
        extremes = chain.extremes(stats.positive, stats.negative)
        if extremes is None:
            assert seen is not None
            extremes = extremes_of(seen)
        found.append(problem.ranges.input_range(*extremes, seen, grid, importance))
    positive, negative = (torch.stack(side) for side in zip(*found, strict=True))
    if fitted.margin is not None:
        positive, negative = positive * fitted.margin, negative * fitted.margin
    first, second = grid.scales(positive, negative)
    return {"input_scale": first, **({layout.second_scale: second} if layout.second_scale else {})}


def correct_bias(
    linear: nn.Linear, layout: Layout, tensors: Mapping[str, Tensor], stats: InputStats
) -> tuple[Layout, dict[str, Tensor]]:
    """The layer with its mean error on the sampled rows moved into its bias."""
    sample, bias = stats.sample, linear.bias
    target = nn.functional.linear(sample, linear.weight.detach().float())
    if bias is not None:
        target = target + bias.detach().float()
    output = REFERENCE.linear(sample, layout, REFERENCE.pack(layout, tensors))
    error = sample_bias_correction(target, output, min(stats.calls, len(sample)))
    dtype = linear.weight.dtype if bias is None else bias.dtype
    corrected = error if bias is None else error + bias.detach().float()
    return replace(layout, bias=True), {**tensors, "bias": corrected.to(dtype)}
