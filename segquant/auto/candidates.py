"""What `auto` may do with one layer: transforms, then roundings under the best of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from segquant.graph.segments import Segments
from segquant.method.spec import Method
from segquant.numerics.formats import QuantScheme
from segquant.numerics.precisions import PRECISIONS, precision_name
from segquant.optimizers.search import SEARCH
from segquant.optimizers.svdquant import SvdQuant

Change = dict[str, Any]
"""Flat settings that a candidate changes, as in an override."""

PLAIN: Change = {
    "optimizer": "none", "rotate": False, "seglinear": False, "dualscale": False,
    "calibrator": "amax", "ranges": "amax", "bias_correction": False,
}  # fmt: skip
"""Round to nearest: always a candidate, and the cheapest."""
RANKS = (0.5, 1.0, 2.0, 4.0)
"""Ranks of the low-rank branch, in multiples of `SvdQuant.rank_of`."""


WIDTHS: dict[str, tuple[str, ...]] = {
    "int": ("int2", "int3", "int4", "int5", "int6", "int8"),
    "uint": ("uint2", "uint3", "uint4", "uint5", "uint6", "uint8"),
    "fp": ("fp4_e2m1", "fp6_e2m3", "fp8"),
    "nf": (),
}
"""Dtypes of weights that may mix, by the kind of the base's."""


def other_precisions(scheme: QuantScheme, in_features: int) -> list[str]:
    """w8a8_dynamic beside 4 bits and less, else w4a8.

    Empty where groups do not divide the layer, or inputs are floats.
    """
    assert scheme.weight is not None
    if scheme.input is None:
        return []
    other = "w8a8_dynamic" if scheme.weight.bits <= 4 else "w4a8"
    weight = PRECISIONS[other].weight
    assert weight is not None
    return [] if weight.group_size and in_features % weight.group_size else [other]


def other_widths(scheme: QuantScheme, in_features: int) -> list[str]:
    """The scheme with weights of other widths, all else as it is; without those of `other_precisions`."""
    weight = scheme.weight
    assert weight is not None
    widths = [dtype for dtype in WIDTHS[weight.grid.kind] if dtype != weight.dtype]
    names = [precision_name(replace(scheme, weight=replace(weight, dtype=dtype))) for dtype in widths]
    known = other_precisions(scheme, in_features)
    return [name for name in names if name not in known]


def ranks_of(base: Method, in_features: int, out_features: int) -> tuple[int, ...]:
    rank, smaller = _default_rank(base, in_features, out_features), min(in_features, out_features)
    return tuple(min(max(1, round(rank * factor)), smaller) for factor in RANKS)


def _default_rank(base: Method, in_features: int, out_features: int) -> int:
    return SvdQuant(rank=base.value("rank")).rank_of(in_features, out_features)


def preset(base: Method, segments: Segments | None, in_features: int, out_features: int) -> Change:
    """What `segquant_r` does to the layer: the choice to beat."""
    assert base.scheme.weight is not None
    has_rows = segments is not None and segments.output is not None  # a rotated input is not cut
    found: Change = {
        **PLAIN, "optimizer": "smooth", "alpha": SEARCH, "rotate": True, "seglinear": base.cuts.seglinear and has_rows,
        "calibrator": "gptq", "ranges": "mse",
    }  # fmt: skip
    if base.scheme.weight.bits <= 4:
        found |= {"optimizer": "svd", "iterations": 1, "rank": _default_rank(base, in_features, out_features)}
    return found


def transforms(base: Method, segments: Segments | None) -> list[Change]:
    """First round: smoothing, rotation and scales per sign, rounded plainly."""
    found: list[Change] = [dict(PLAIN)]
    quantized_input = base.scheme.input is not None
    rule = "smooth" if quantized_input else "awq"
    has_rows = segments is not None and segments.output is not None
    has_cuts = has_rows or (segments is not None and segments.input is not None)
    fed = segments is not None and (segments.activation or any(segments.input_activations or ()))
    cut = base.cuts.seglinear and has_cuts
    for smooth in ({"optimizer": "none"}, {"optimizer": rule, "alpha": SEARCH}):
        found.append({**PLAIN, **smooth, "seglinear": cut})
        # a rotated input is not cut
        found.append({**PLAIN, **smooth, "seglinear": base.cuts.seglinear and has_rows, "rotate": True})
        if base.cuts.dualscale and fed and quantized_input:
            found.append({**PLAIN, **smooth, "seglinear": cut, "dualscale": True})
    return _distinct(found)


def branches(strong: Change, ranks: Sequence[int]) -> list[Change]:
    plain = {key: value for key, value in strong.items() if key not in ("rank", "iterations")}
    low = [{**plain, "optimizer": "svd", "iterations": 1, "rank": rank} for rank in ranks]
    return _distinct([{**plain, "optimizer": "smooth"}, *low])


def roundings(base: Method, best: Sequence[Change]) -> list[Change]:
    """Second round, on the best transforms: no cuts, GPTQ, ranges, bias correction."""
    found: list[Change] = []
    for change in best:
        # what shares a smoothing, a Hessian and a solution stands together
        found.append({**change, "bias_correction": True})
        found.append({**change, "calibrator": "gptq"})
        found.append({**change, "calibrator": "gptq", "bias_correction": True})
        if _may_shrink(base, change):
            found.append({**change, "calibrator": "gptq", "ranges": "mse"})
        if change.get("seglinear", base.cuts.seglinear):
            found.append({**change, "calibrator": "gptq", "seglinear": False})
    return _distinct(found)


def _may_shrink(base: Method, change: Change) -> bool:
    """Whether to try ranges of least squared error. Not for static unrotated inputs: fresh rows get clipped."""
    return not base.scheme.static_input or bool(change.get("rotate", base.value("rotate")))


def changed(base: Method, change: Change) -> Method:
    """The candidate's method; ValueError where it makes no sense."""
    return base.changed(**{**change, "budget": None, "overrides": (), "skip": ()})


def _distinct(changes: Iterable[Change]) -> list[Change]:
    found: list[Change] = []
    for change in changes:
        if change not in found:
            found.append(change)
    return found
