"""Where a layer is cut."""

from __future__ import annotations

from torch import nn

from segquant.errors import QuantizationError
from segquant.graph.segments import Segments, column_segments
from segquant.method.parts import NONE
from segquant.method.spec import Method
from segquant.numerics.layout import Layout
from segquant.numerics.transform import Transform
from segquant.solve.one_product import folded


def lay_out_layer(linear: nn.Linear, method: Method, segments: Segments | None, name: str, taps: int = 1) -> Layout:
    """The layer as it will be; see `lay_out_pieces`."""
    layout = lay_out_pieces(linear, method, segments, name, taps)
    return folded(layout) if one_scale(layout, method) else layout


def one_scale(layout: Layout, method: Method) -> bool:
    """Whether the scales of input pieces go into the smoothing."""
    return method.cuts.columns == "fold" and len(layout.columns) > 1


def lay_out_pieces(linear: nn.Linear, method: Method, segments: Segments | None, name: str, taps: int = 1) -> Layout:
    """Where the layer is cut and which inputs get a scale per sign.

    Input segments that the group size does not divide are not cut, nor those that super-blocks do not.

    Raises:
        QuantizationError: the group size does not divide in_features, or the segments do not fit the layer.
    """
    scheme = method.scheme
    if not linear.in_features or not linear.out_features:
        raise QuantizationError(
            f"{name}: a layer of {linear.in_features} -> {linear.out_features} features has no weights to quantize; "
            f"leave it out with skip=[{name!r}]"
        )
    groups = [
        (side, "groups" if spec.block == spec.group_size else "super-blocks", spec.block)
        for side, spec in (("weight", scheme.weight), ("input", scheme.input))
        if spec is not None and spec.block
    ]
    for side, what, group in groups:
        if linear.in_features % group:
            raise QuantizationError(
                f"{name}: {side} {what} of {group} do not divide its in_features {linear.in_features}; leave it out "
                f"with skip=[{name!r}] or choose another precision{_advice(what, group, linear.in_features)}"
            )
    segments = column_segments(segments, taps)
    rows, columns, activations = _cuts(linear, method, segments, [group for _, _, group in groups])
    transforms = planned(method)
    keeps_sign = method.cuts.dualscale and method.cuts.negative != NONE and scheme.input is not None
    keeps_sign = keeps_sign and not _mixes(method)
    if method.cuts.negative == "shift" and not scheme.static_input:
        keeps_sign = False  # a constant would widen the range of every token that is smaller than it
    dual = tuple(keeps_sign and bool(entry) for entry in activations)
    apart = method.optimizer.apart and len(rows) > 1
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
            transforms=transforms,
            taps=taps,
            negative=method.cuts.negative if any(dual) else "dual",
        )
    except ValueError as error:
        raise QuantizationError(f"{name}: its segments do not fit: {error}") from error


def _advice(what: str, group: int, width: int) -> str:
    if what != "groups":
        return ""  # the precision fixes their size
    sizes = [size for size in range(1, width + 1) if width % size == 0]
    return f" (groups of {min(sizes, key=lambda size: abs(size - group))} divide it)"


def planned(method: Method) -> tuple[Transform, ...]:
    turn = () if method.rotation is None else (method.rotation.transform,)
    return (*method.optimizer.transforms, *turn)


def _mixes(method: Method) -> bool:
    return any(transform.mixes for transform in planned(method))


def _cuts(
    linear: nn.Linear, method: Method, segments: Segments | None, groups: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str | None, ...]]:
    rows: tuple[int, ...] = (linear.out_features,)
    columns: tuple[int, ...] = (linear.in_features,)
    if segments is None:
        return rows, columns, (None,)
    pieces = segments.input_activations
    if method.cuts.seglinear:
        rows = segments.output or rows
        # a rotation spreads every channel over the whole input: nothing is left of the pieces it was made of
        fits = segments.input and not any(size % group for size in segments.input for group in groups)
        cuts = fits and method.cuts.columns != "whole" and not _mixes(method)
        if cuts and pieces and segments.input:
            return rows, segments.input, pieces
    # an uncut input comes out of an activation if all of its pieces do
    whole = segments.activation or (pieces[0] if pieces and all(pieces) else None)
    return rows, columns, (whole,)
