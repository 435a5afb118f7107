"""A branch of a quantized linear as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from segquant.deploy.onnx.forms import BLOCKS, FP8, INT8, WIDE_BLOCKS, why_no_codes
from segquant.deploy.onnx.quantizers import Codes, codes_of, rounded_groups
from segquant.deploy.onnx.tape import Array, array, fp8
from segquant.deploy.onnx.work import CENTRE, Piece, Work
from segquant.numerics.fake_quant import dequantize_weight
from segquant.numerics.layout import slices
from segquant.numerics.packing import pack

EXACT, AS_INT8 = 0, 4
"""How MatMulNBits multiplies."""


def linear(work: Work, x: ir.Value, rank: int, form: str) -> ir.Value:
    """[..., in] -> [..., rows] of x's rank."""
    tape = work.tape
    # with two dimensions ONNX Runtime would make a float Gemm of the product and the bias
    missing = max(0, 3 - rank)
    if missing:
        x = tape.op("Unsqueeze", x, tape.whole(*range(missing)))
    if form in (BLOCKS, WIDE_BLOCKS):
        out = _blocks(work, x)
    elif form == INT8:
        out = _integer(work, x)
    elif form == FP8:
        out = _fp8(work, x)
    else:
        out = tape.op("MatMul", x, float_weight(work))
    bias = work.bias(1, 1, -1)
    out = out if bias is None else tape.op("Add", out, bias)
    return tape.op("Squeeze", out, tape.whole(*range(missing))) if missing else out


def _integer(work: Work, x: ir.Value) -> ir.Value:
    codes, pieces, places = work.codes(), work.pieces(), slices(work.grid.pieces)
    signed: list[tuple[bool, ir.Value]] = []
    for given, place in enumerate(places):
        part = x if len(places) == 1 else _columns(work, x, place)
        for each in codes_of(work, part, given):
            for number, piece in enumerate(pieces):
                if piece.given == given:
                    label = work.label if len(pieces) == 1 else f"{work.label}.{number}"
                    inner = each if piece.columns == place else _inside(work, each, piece.columns, place)
                    product = _product(work, inner, codes[:, piece.columns], piece, label)
                    signed.append((each.negated, product))
    return summed(work, signed)


def summed(work: Work, products: Sequence[tuple[bool, ir.Value]]) -> ir.Value:
    """Of pairs of whether a product is taken away, and the product; the first is added."""
    assert products and not products[0][0]
    total = products[0][1]
    for negated, product in products[1:]:
        total = work.tape.op("Sub" if negated else "Add", total, product)
    return total


def _columns(work: Work, x: ir.Value, place: slice) -> ir.Value:
    tape = work.tape
    return tape.op("Slice", x, tape.whole(place.start), tape.whole(place.stop), tape.whole(-1))


def _inside(work: Work, each: Codes, columns: slice, place: slice) -> Codes:
    """A part of an input piece: cut as codes, since engines look for a pair before a product."""
    source = each.value.producer()
    assert source is not None and source.inputs[0] is not None
    cut = _columns(work, source.inputs[0], slice(columns.start - place.start, columns.stop - place.start))
    return replace(each, value=work.tape.op("DequantizeLinear", cut, *source.inputs[1:]))


def _product(work: Work, each: Codes, block: Tensor, piece: Piece, label: str) -> ir.Value:
    tape = work.tape
    out = tape.op("MatMul", each.value, _weight(work, each, block, piece, label))
    if work.centred:  # engines add up codes, so that this is exact
        total = tape.op("ReduceSum", each.value, tape.whole(-1), keepdims=1)
        out = tape.op("Sub", out, tape.op("Mul", total, offset(work, piece, label)))
    if each.zero is not None:
        scale = work.weight_scale(piece.weight)
        zero = work.offset(piece.weight) if work.centred else work.weight_zero(piece.weight, block)
        sums = (array(block.sum(1).float()) - (0 if zero is None else block.shape[1] * zero.astype(np.float32))) * scale
        shift = tape.constant(f"{label}.sums", lambda: sums.reshape(1, 1, -1).astype(np.float32))
        out = tape.op("Sub", out, tape.op("Mul", each.zero, shift))
    return out if each.after is None else tape.op("Mul", out, each.after)


def _weight(work: Work, each: Codes, block: Tensor, piece: Piece, label: str) -> ir.Value:
    """Dequantized [columns, rows]; a node for each use, since engines look for pairs."""
    tape = work.tape
    scale = tape.constant(f"{label}.weight_scale", lambda: work.weight_scale(piece.weight))
    if unsigned(work, each, block):
        # products of unsigned codes are exact on CPUs whose signed ones saturate
        codes = tape.constant(f"{label}.codes", lambda: array(block.T).view(np.uint8) ^ np.uint8(CENTRE))
        size = work.weight_scale(piece.weight).shape
        zero = tape.constant(f"{label}.weight_zero", lambda: np.full(size, CENTRE, dtype=np.uint8))
        return tape.op("DequantizeLinear", codes, scale, zero, axis=1)
    codes = tape.constant(f"{label}.codes", lambda: work.stored(block.T))
    if codes.dtype == ir.DataType.INT4:  # integer kernels are looked for with 8 bits; engines fold this
        codes = tape.op("Cast", codes, to=int(ir.DataType.INT8))
    return tape.op("DequantizeLinear", codes, scale, *_zero(work, label, work.weight_zero(piece.weight, block)), axis=1)


def offset(work: Work, piece: Piece, label: str) -> ir.Value:
    """What a sum of inputs is multiplied with and taken away, where codes are `centred`: [rows], or a scalar."""
    tape = work.tape
    scale = tape.constant(f"{label}.weight_scale", lambda: work.weight_scale(piece.weight))
    codes = tape.constant(f"{label}.weight_offset", lambda: work.offset(piece.weight))
    return tape.op("DequantizeLinear", codes, scale, axis=0)


def _zero(work: Work, label: str, zero: Array | None) -> list[ir.Value]:
    return [] if zero is None else [work.tape.constant(f"{label}.weight_zero", lambda: zero)]


def unsigned(work: Work, each: Codes, block: Tensor) -> bool:
    """Whether the weights' codes are stored with 128 added."""
    # codes of fewer bits never saturate
    if not (work.every_cpu and work.profile.fused) or work.layout.weight_spec.dtype != "int8":
        return False
    return not each.small or bool((block == -CENTRE).any())


def _blocks(work: Work, x: ir.Value) -> ir.Value:
    tape, layout, given = work.tape, work.layout, work.layout.scheme.input
    size = layout.weight_spec.group_size
    assert size is not None
    if given is not None and given.bits < 8:
        x = rounded_groups(work, x)
    if not work.profile.fused:
        return tape.op("MatMul", x, float_weight(work))
    count = work.rows.stop - work.rows.start
    whole = work.codes(signed=False)
    zeros = work.zeros(whole)
    fours = whole + 8 if zeros is None else whole  # the operator's own zero point is 8
    codes = tape.constant(f"{work.label}.codes", lambda: array(pack(fours, 4)).reshape(count, -1, size // 2))
    scale = tape.narrow(f"{work.label}.weight_scale", lambda: array(work.blocks(work.scales.scale).reshape(-1)))
    zero = _zero(work, work.label, None if zeros is None else array(pack(work.blocks(zeros), 4)))
    attributes = {"K": layout.in_features, "N": count, "bits": 4, "block_size": size}
    level = EXACT if given is None else AS_INT8
    return tape.op("MatMulNBits", x, codes, scale, *zero, domain="com.microsoft", accuracy_level=level, **attributes)


def float_weight(work: Work) -> ir.Value:
    """Dequantized codes [in, rows]; floats where DequantizeLinear has no such codes."""
    tape, layout = work.tape, work.layout
    if why_no_codes(layout.weight_spec, work.profile) is not None:
        return tape.constant(
            f"{work.label}.weight", lambda: array(dequantize_weight(layout, work.tensors)[work.rows].T)
        )
    codes, group = work.codes(signed=False), layout.weight_spec.group_size
    if group:
        stored = tape.constant(f"{work.label}.codes", lambda: work.stored_block(codes.T))
        constant = tape.constant if work.profile.symmetric else tape.narrow  # TensorRT's parser wants a scale as it is
        scale = constant(f"{work.label}.weight_scale", lambda: array(work.blocks(work.scales.scale).T))
        zeros = work.zeros(codes)
        zero = _zero(work, work.label, None if zeros is None else work.stored_block(work.blocks(zeros).T))
        return tape.op("DequantizeLinear", stored, scale, *zero, axis=0, block_size=group)
    parts = []
    for number, columns in enumerate(slices(layout.weight_columns)):
        label = f"{work.label}.{number}" if len(layout.weight_columns) > 1 else work.label
        piece = Piece(columns, number, 0)
        stored = tape.constant(f"{label}.codes", partial(_stored, work, codes, piece))
        scale = tape.constant(f"{label}.weight_scale", partial(work.weight_scale, number))
        zero = _zero(work, label, work.weight_zero(number, codes))
        parts.append(tape.op("DequantizeLinear", stored, scale, *zero, axis=1))
    return parts[0] if len(parts) == 1 else tape.op("Concat", *parts, axis=0)


def _stored(work: Work, codes: Tensor, piece: Piece) -> Array:
    return work.stored(codes[:, piece.columns].T)


def _fp8(work: Work, x: ir.Value) -> ir.Value:
    tape, (piece,) = work.tape, work.pieces()
    zero = tape.constant("number/fp8/0", lambda: fp8(torch.zeros((), dtype=torch.uint8, device="cpu")))
    scale = tape.number(work.input_scale(piece.given))
    given = tape.op("DequantizeLinear", tape.op("QuantizeLinear", x, scale, zero), scale, zero)
    codes = tape.constant(f"{work.label}.codes", lambda: fp8(work.codes().T))
    own = tape.constant(f"{work.label}.weight_scale", lambda: work.weight_scale(piece.weight))
    return tape.op("MatMul", given, tape.op("DequantizeLinear", codes, own, axis=1))
