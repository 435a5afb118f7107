"""What `auto` may do with one layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from segquant.graph.segments import Segments
from segquant.method.spec import Method
from segquant.numerics.formats import QuantScheme
from segquant.numerics.precisions import PRECISIONS
from segquant.optimizers.search import SEARCH
from segquant.optimizers.smooth import DEFAULT_ALPHA
from segquant.optimizers.svdquant import SvdQuant

Change = dict[str, Any]
"""Flat settings that a candidate changes, as in an override."""

PLAIN: Change = {
    "optimizer": "none", "rotate": False, "seglinear": False, "dualscale": False,
    "calibrator": "amax", "ranges": "amax", "bias_correction": False,
}  # fmt: skip
"""Round to nearest: always a candidate, and the cheapest."""

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


def strong(base: Method, segments: Segments | None) -> Change:
    """What `segquant_r` does to the layer, but for its low-rank branch: always among the candidates."""
    return solved(base, {**_turned(base, segments), "optimizer": "smooth", "alpha": SEARCH})


def branch(base: Method, in_features: int, out_features: int) -> Change:
    """A low-rank branch, refitted once."""
    rank = SvdQuant(rank=base.value("rank")).rank_of(in_features, out_features)
    return {"optimizer": "svd", "alpha": SEARCH, "iterations": 1, "rank": rank}


def transforms(base: Method, segments: Segments | None) -> list[Change]:
    """First round, rounded to nearest: the graph's cuts, a scale per sign, smoothing, and rotation of each.

    α is DEFAULT_ALPHA: a search for it tells transforms apart no better, and takes most of the time.
    """
    cut = {**PLAIN, **_cut(base, segments)}
    turned = _turned(base, segments)
    smoothed: Change = {"optimizer": "smooth" if base.scheme.input is not None else "awq", "alpha": DEFAULT_ALPHA}
    return _distinct([cut, turned, {**cut, **smoothed}, {**turned, **smoothed}])


def solved(base: Method, change: Mapping[str, Any]) -> Change:
    """Second round: the transforms of `change` under GPTQ, with α searched.

    Ranges are those of least squared error, but for static inputs that are not rotated: fresh rows would be clipped.
    """
    clips = base.scheme.static_input and not change.get("rotate", base.value("rotate"))
    searched = {"alpha": SEARCH} if "alpha" in change else {}
    return {**change, **searched, "calibrator": "gptq", "ranges": "amax" if clips else "mse"}


def _turned(base: Method, segments: Segments | None) -> Change:
    """Rotated; of the cuts those of the output are left, since a rotated input is not cut."""
    has_rows = segments is not None and segments.output is not None
    return {**PLAIN, "rotate": True, "seglinear": base.cuts.seglinear and has_rows}


def _cut(base: Method, segments: Segments | None) -> Change:
    """What of the base's cuts the layer has a place for."""
    if segments is None:
        return {}
    fed = bool(segments.activation or any(segments.input_activations or ()))
    return {
        "seglinear": base.cuts.seglinear and (segments.output is not None or segments.input is not None),
        "dualscale": base.cuts.dualscale and fed and base.scheme.input is not None,
    }


def changed(base: Method, change: Change) -> Method:
    """The candidate's method; ValueError where it makes no sense."""
    return base.changed(**{**change, "budget": None, "overrides": (), "skip": ()})


def _distinct(changes: Iterable[Change]) -> list[Change]:
    found: list[Change] = []
    for change in changes:
        if change not in found:
            found.append(change)
    return found
