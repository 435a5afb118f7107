"""Inputs as codes: what an integer product takes, and what its result is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from segquant.deploy.onnx.work import CENTRE, Work

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Codes:
    """An input after QuantizeLinear and DequantizeLinear.

    Args:
        value: float, on the grid; for dynamic inputs in units of the scale.
        after: factor of the product, maybe per token; None: 1.
        negated: the product is taken away, not added; False where values have the sign.
        zero: per token; its product with the sums of weight codes is taken away (× `after`).
        small: codes are at most 128, which no integer product of pairs saturates on.
    """

    value: ir.Value
    after: ir.Value | None = None
    negated: bool = False
    zero: ir.Value | None = None
    small: bool = False


def codes_of(work: Work, x: ir.Value, piece: int, axis: int = -1) -> list[Codes]:
    """The input piece's codes: two where it has a scale per sign.

    Args:
        axis: of the channels, along which a token's scale is taken.
    """
    spec = work.grid.spec
    if not spec.dynamic:
        return _static(work, x, piece)
    axes = None if spec.granularity == "tensor" else work.tape.whole(axis)
    return _dynamic(work, x, piece, axes)


def quantized(work: Work, x: ir.Value, scale: float, zero: int, back: float | None = None) -> ir.Value:
    """x on the grid of a scale, signed where the profile is symmetric; codes are multiplied with `back` (None: it)."""
    kind = np.int8 if work.profile.symmetric else np.uint8
    offset = work.tape.number(zero, kind)
    codes = work.tape.op("QuantizeLinear", x, work.tape.number(scale), offset)
    return work.tape.op("DequantizeLinear", codes, work.tape.number(scale if back is None else back), offset)


def _on_grid(work: Work, x: ir.Value, scale: float, zero: int, small: bool = False, negated: bool = False) -> Codes:
    step = scale
    if work.apart:
        x, step = work.tape.op("Round", work.tape.op("Div", x, work.tape.number(scale))), 1.0
    signed = negated and work.signed_values
    value = quantized(work, x, step, zero, -scale if signed else scale)
    return Codes(value, negated=negated and not signed, small=small)


def _centre(work: Work) -> int:
    return 0 if work.profile.symmetric else CENTRE


def _static(work: Work, x: ir.Value, piece: int) -> list[Codes]:
    tape, (low, high) = work.tape, work.range()
    scale = work.input_scale(piece)
    if work.dual(piece):
        below = work.input_scale(piece, negative=True)
        limits = float(np.float32(high) * np.float32(scale)), float(np.float32(-low) * np.float32(below))
        return _two(work, x, (scale, below), limits)
    if work.zero_point:
        zero = work.input_zero(piece)
        if high < 127:
            bounds = (np.float32(-zero) * np.float32(scale), np.float32(high - low - zero) * np.float32(scale))
            x = tape.op("Clip", x, tape.number(float(bounds[0])), tape.number(float(bounds[1])))
        return [_on_grid(work, x, scale, zero)]
    if high < 127:
        x = tape.op("Clip", x, tape.number(low * scale), tape.number(high * scale))
    return [_on_grid(work, x, scale, _centre(work))]


def _two(work: Work, x: ir.Value, scales: tuple[float, float], limits: tuple[float, float]) -> list[Codes]:
    """Codes of x ≥ 0 and of x below, with scales of their own; magnitudes in unsigned codes."""
    tape = work.tape
    if work.profile.symmetric:  # saturates at the ends of int8 by itself
        above, below = tape.op("Relu", x), tape.op("Min", x, tape.number(0.0))
        return [_on_grid(work, above, scales[0], 0), _on_grid(work, below, scales[1], 0)]
    above = tape.op("Min", x, tape.number(float(limits[0])))
    below = tape.op("Min", tape.op("Neg", x), tape.number(float(limits[1])))
    return [
        _on_grid(work, above, scales[0], 0, small=True),
        _on_grid(work, below, scales[1], 0, negated=True, small=True),
    ]


def _dynamic(work: Work, x: ir.Value, piece: int, axes: ir.Value | None) -> list[Codes]:
    tape, (low, high) = work.tape, work.range()
    if work.dual(piece):
        return [_one_sign(work, x, axes, negative) for negative in (False, True)]
    if work.zero_point and work.grid.dual[piece]:
        above, below = largest(work, x, axes), largest(work, tape.op("Neg", x), axes)
        above, below = (tape.op("Max", side, tape.number(0.0)) for side in (above, below))
        scale = _scale(work, tape.op("Add", above, below), high - low)
        zero = tape.op("Round", tape.op("Div", below, scale))
        shifted = tape.op("Add", tape.op("Round", tape.op("Div", x, scale)), zero)
        bounded = tape.op("Clip", shifted, tape.number(0.0), tape.number(float(high - low)))
        return [Codes(quantized(work, bounded, 1.0, 0), after=scale, zero=zero)]
    scale = _scale(work, largest(work, tape.op("Abs", x), axes), high)
    return [Codes(quantized(work, tape.op("Div", x, scale), 1.0, _centre(work)), after=scale)]


def _one_sign(work: Work, x: ir.Value, axes: ir.Value | None, negative: bool) -> Codes:
    tape, (low, high) = work.tape, work.range()
    side = tape.op("Neg", x) if negative else x
    scale = _scale(work, largest(work, side, axes), -low if negative else high)
    if work.profile.symmetric:
        part = tape.op("Min", x, tape.number(0.0)) if negative else tape.op("Relu", x)
        return Codes(quantized(work, tape.op("Div", part, scale), 1.0, 0), after=scale)
    signed = negative and work.signed_values
    part = quantized(work, tape.op("Div", side, scale), 1.0, 0, -1.0 if signed else 1.0)
    return Codes(
        part, after=scale, negated=negative and not signed, small=True
    )  # values of the other sign saturate at 0


def largest(work: Work, x: ir.Value, axes: ir.Value | None) -> ir.Value:
    """Along `axes`, all if None; dimensions are kept."""
    return work.tape.op("ReduceMax", x, *(() if axes is None else (axes,)), keepdims=1)


def _scale(work: Work, amax: ir.Value, limit: int) -> ir.Value:
    tape = work.tape
    return tape.op("Max", tape.op("Div", amax, tape.number(float(limit))), tape.number(TINY))


def rounded_groups(work: Work, x: ir.Value) -> ir.Value:
    """Inputs [..., in] of three dimensions, on the grid of their groups (or tokens' pieces of one size), in float."""
    tape, layout, (low, high) = work.tape, work.layout, work.range()
    size = layout.input_columns[0]
    axes = tape.whole(-1)
    x = tape.op("Reshape", x, tape.whole(0, 0, len(layout.input_columns), size))
    if any(work.grid.dual):
        masks = np.array(work.grid.dual).reshape(1, 1, -1, 1)
        above, below = largest(work, x, axes), largest(work, tape.op("Neg", x), axes)
        plain = _scale(work, tape.op("Max", above, below), high)
        flag = tape.constant(f"{work.name}.dual", lambda: masks)
        sides = [tape.op("Where", flag, _scale(work, side, top), plain) for side, top in ((above, high), (below, -low))]
        scale = tape.op("Where", tape.op("Less", x, tape.number(0.0)), sides[1], sides[0])
    else:
        scale = _scale(work, largest(work, tape.op("Abs", x), axes), high)
    codes = tape.op("Round", tape.op("Div", x, scale))
    codes = tape.op("Clip", codes, tape.number(float(low)), tape.number(float(high)))
    return tape.op("Reshape", tape.op("Mul", codes, scale), tape.whole(0, 0, layout.in_features))
