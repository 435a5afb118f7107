"""A branch of a quantized convolution as ONNX nodes, on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from segquant.deploy.onnx.forms import FP8, INT8
from segquant.deploy.onnx.products import float_weight, offset, summed
from segquant.deploy.onnx.quantizers import Codes, codes_of
from segquant.deploy.onnx.tape import array, fp8, uint4
from segquant.deploy.onnx.work import CENTRE, Piece, Work
from segquant.kernels.integers import kernel_bits
from segquant.modules.window import Window


def convolution(work: Work, x: ir.Value, window: Window, pads: Sequence[int], form: str) -> ir.Value:
    """[batch, channels, h, w] -> [batch, rows, h', w'].

    Args:
        pads: with zeros: top, left, bottom, right.
    """
    geometry: dict[str, Any] = {
        "kernel_shape": list(window.kernel),
        "strides": list(window.stride),
        "dilations": list(window.dilation),
        "pads": list(pads),
    }
    if form not in (INT8, FP8):
        flat = work.tape.op("Transpose", float_weight(work), perm=[1, 0])
        weight = work.tape.op("Reshape", flat, work.tape.whole(*_shape(work, window, work.layout.in_features)))
        return _with_bias(work, work.tape.op("Conv", x, weight, **geometry))
    products: list[tuple[bool, ir.Value]] = []
    codes, pieces = work.codes(), work.pieces()
    for number, piece in enumerate(pieces):
        part = x if len(pieces) == 1 else _channels(work, x, piece, window)
        label = work.label if len(pieces) == 1 else f"{work.label}.{number}"
        block = codes[:, piece.columns]
        block = block.reshape(_shape(work, window, block.shape[1]))
        for each in codes_of(work, part, piece.given) if form == INT8 else [_fp8(work, part, piece)]:
            if work.profile.fused:
                products.append((each.negated, _fused(work, each, block, piece, label, geometry)))
            else:
                products.append((False, _paired(work, each, block, piece, label, geometry)))
    return _with_bias(work, summed(work, products))


def _shape(work: Work, window: Window, columns: int) -> tuple[int, ...]:
    return work.rows.stop - work.rows.start, columns // window.taps, *window.kernel


def _with_bias(work: Work, out: ir.Value) -> ir.Value:
    bias = work.bias(1, -1, 1, 1)
    return out if bias is None else work.tape.op("Add", out, bias)


def _channels(work: Work, x: ir.Value, piece: Piece, window: Window) -> ir.Value:
    tape, taps = work.tape, window.taps
    bounds = tape.whole(piece.columns.start // taps), tape.whole(piece.columns.stop // taps), tape.whole(1)
    return tape.op("Slice", x, *bounds)


def _fp8(work: Work, x: ir.Value, piece: Piece) -> Codes:
    tape = work.tape
    zero = tape.constant("number/fp8/0", lambda: fp8(work.tensors["codes"].new_zeros(())))
    scale = tape.number(work.input_scale(piece.given))
    return Codes(tape.op("DequantizeLinear", tape.op("QuantizeLinear", x, scale, zero), scale, zero))


def _paired(work: Work, each: Codes, block: Tensor, piece: Piece, label: str, geometry: dict[str, Any]) -> ir.Value:
    """QuantizeLinear, DequantizeLinear, Conv."""
    assert not each.negated
    tape = work.tape
    scale = tape.constant(f"{label}.weight_scale", lambda: work.weight_scale(piece.weight))
    codes = tape.constant(f"{label}.codes", lambda: work.stored(block))
    if codes.dtype == ir.DataType.INT4:
        codes = tape.op("Cast", codes, to=int(ir.DataType.INT8))
    weight = tape.op("DequantizeLinear", codes, scale, axis=0)
    out = tape.op("Conv", each.value, weight, **geometry)
    if work.centred:
        out = tape.op("Sub", out, _below(work, each, block, piece, label, geometry))
    return _scaled(work, each, out)


def _below(work: Work, each: Codes, block: Tensor, piece: Piece, label: str, geometry: dict[str, Any]) -> ir.Value:
    """What `centred` codes count too much: a convolution by ones, times their zero points."""
    tape = work.tape
    shape = (1, *block.shape[1:])
    ones = tape.constant(f"ones/{'x'.join(map(str, shape))}", lambda: np.ones(shape, np.int8))
    weight = tape.op("DequantizeLinear", ones, tape.number(1.0))
    zero = offset(work, piece, label)
    wide = tape.op("Reshape", zero, tape.whole(1, -1, 1, 1))
    return tape.op("Mul", tape.op("Conv", each.value, weight, **geometry), wide)


def _fused(work: Work, each: Codes, block: Tensor, piece: Piece, label: str, geometry: dict[str, Any]) -> ir.Value:
    """ConvInteger: ONNX Runtime makes integers of a pair and Conv only where the output is quantized too.

    Weights are unsigned, for which it has the faster kernel.
    """
    tape = work.tape
    source = each.value.producer()
    assert source is not None
    code, given, zero = source.inputs
    four = kernel_bits(work.layout.weight_spec) == 4
    make = (lambda: uint4(block + 8)) if four else (lambda: array(block).view(np.uint8) ^ np.uint8(CENTRE))
    stored = tape.constant(f"{label}.codes", make)
    if four:
        stored = tape.op("Cast", stored, to=int(ir.DataType.UINT8))
    centre = tape.number(8 if four else CENTRE, np.uint8)
    tape.nodes.remove(source)  # the pair's second half
    out = tape.op("ConvInteger", code, stored, zero, centre, **geometry)
    scale = tape.constant(f"{label}.weight_scale", lambda: work.weight_scale(piece.weight).reshape(-1, 1, 1))
    out = tape.op("Mul", tape.op("Cast", out, to=int(ir.DataType.FLOAT)), scale)
    return _scaled(work, each, tape.op("Mul", out, given))


def _scaled(work: Work, each: Codes, out: ir.Value) -> ir.Value:
    return out if each.after is None else work.tape.op("Mul", out, each.after)
