"""Layers in a form that engines can run: one product, one grid for the input (`Cuts.negative`, `Cuts.columns`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from segquant.errors import QuantizationError
from segquant.numerics import functional as F
from segquant.numerics.fake_quant import dequantize_weight
from segquant.numerics.layout import Layout
from segquant.optimizers.protocol import Fitted, Problem
from segquant.optimizers.simulation import extremes_of
from segquant.transforms.chain import Chain
from segquant.transforms.shift import Shift
from segquant.transforms.smoothing import Smoothing


def folded(layout: Layout) -> Layout:
    """The layout with its input pieces under one scale."""
    return replace(layout, columns=(layout.in_features,), dual=(any(layout.dual),))


def fold(problem: Problem, fitted: Fitted) -> Fitted:
    """The pieces' scales moved into the smoothing vector: every piece then has the same range, headroom included.

    Raises:
        QuantizationError: transforms that a vector per channel does not go through.
    """
    layout = problem.layout
    if layout.scheme.input is None:
        return replace(fitted, margin=None)
    vectors = fitted.tensors.get("smooth")
    if vectors is None:
        vectors = torch.ones(
            len(layout.branches), layout.in_features, dtype=torch.float32, device=problem.weight.device
        )
    kinds = [type(transform) for transform in fitted.transforms]
    if kinds.count(Smoothing) < len(kinds):
        names = ", ".join(transform.name for transform in fitted.transforms)
        raise QuantizationError(
            f"{problem.name}: columns='fold' moves scales into a smoothing vector, and its optimizer gives {names}; "
            "choose columns='pieces'"
        )
    margin = torch.ones_like(_piece_ranges(problem, fitted)) if fitted.margin is None else fitted.margin
    ranges = _piece_ranges(problem, fitted) * margin
    ranges = torch.where(ranges > 0, ranges, torch.ones_like(ranges))
    wide = F.expand_pieces(ranges, layout.columns)
    wide = wide / wide.double().log().mean(-1, keepdim=True).exp().float()
    return replace(
        fitted,
        transforms=(Smoothing(),),
        tensors={**fitted.tensors, "smooth": vectors * wide},
        margin=margin.amin(-1, keepdim=True),
    )


def shift(problem: Problem, fitted: Fitted) -> Fitted:
    """The middle of every piece whose signs differ taken off the input; see `Shift`."""
    layout, constants = problem.layout, []
    for branch in range(len(layout.branches)):
        positive, negative = _extremes(problem, _chain(problem, fitted, branch))
        middle = (F.piece_max(positive, layout.columns) - F.piece_max(negative, layout.columns)) / 2
        apart = torch.tensor(layout.dual, dtype=torch.bool, device=middle.device)
        middle = torch.where(apart, middle, torch.zeros_like(middle))
        constants.append(F.expand_pieces(middle, layout.columns).expand(layout.in_features))
    tensors = {**fitted.tensors, "shift": torch.stack(constants)}
    return replace(fitted, transforms=(*fitted.transforms, Shift()), tensors=tensors)


def shift_product(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`Shift`'s product with the weight as it is rounded, low-rank branch and all; nothing without a shift."""
    if layout.transform(Shift.name) is None:
        return {}
    index, found = [transform.name for transform in layout.transforms].index(Shift.name), []
    weight = dequantize_weight(layout, tensors)
    for branch, rows in enumerate(layout.branch_slices):
        after = Chain(layout.transforms[index + 1 :], layout.place(tensors, branch))
        constant = tensors["shift"][branch].double()
        found.append((after.undo(weight[rows]).double() @ constant).float())
    return {"shift_product": torch.cat(found)}


def _piece_ranges(problem: Problem, fitted: Fitted) -> Tensor:
    """Largest magnitude per branch and piece, [branches, pieces]; half the width of those that are shifted."""
    layout, found = problem.layout, []
    shifted = torch.tensor(
        [flag and layout.negative == "shift" for flag in layout.dual], dtype=torch.bool, device=problem.weight.device
    )
    for branch in range(len(layout.branches)):
        extremes = _extremes(problem, _chain(problem, fitted, branch))
        positive, negative = (F.piece_max(side, layout.columns) for side in extremes)
        found.append(torch.where(shifted, (positive + negative) / 2, torch.maximum(positive, negative)))
    return torch.stack(found)


def _chain(problem: Problem, fitted: Fitted, branch: int) -> Chain:
    return Chain(fitted.transforms, problem.layout.place(fitted.tensors, branch))


def _extremes(problem: Problem, chain: Chain) -> tuple[Tensor, Tensor]:
    stats = problem.stats
    assert stats is not None
    found = chain.extremes(stats.positive, stats.negative)
    return extremes_of(chain.rows(stats.sample)) if found is None else found
