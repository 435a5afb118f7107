"""Scores of attention, queries times keys, as ONNX nodes: engines multiply their 8-bit codes as integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from segquant.deploy.onnx.attention import Ranges
from segquant.deploy.onnx.tape import Array, Tape, array

LARGEST = np.float32(127)
TINY = np.finfo(np.float32).tiny


def scores(tape: Tape, node: ir.Node, ranges: Ranges) -> ir.Value:
    """A node of SCORES [..., heads, queries, keys], with a scale per head where heads are known.

    Both are divided by their scales and rounded before they are quantized: with a scale per head in QuantizeLinear
    itself OpenVINO multiplies floats.
    """
    name, factor = node.attributes["attention"].as_string(), np.float32(node.attributes["factor"].as_float())
    query, key = node.inputs
    assert query is not None and query.shape is not None and key is not None
    rank = len(query.shape)
    heads = query.shape[-3] if rank > 3 else 1
    of_query, of_key = (_of_heads(scales(array(each)), heads) for each in ranges[name])
    left = _codes(tape, query, tape.constant(f"{name}.query_scale", lambda: of_query))
    right = _codes(tape, key, tape.constant(f"{name}.key_scale", lambda: of_key))
    turned = tape.op("Transpose", right, perm=[*range(rank - 2), rank - 1, rank - 2])
    back = tape.constant(f"{name}.score_scale", lambda: of_query * of_key * factor)
    return tape.op("Mul", tape.op("MatMul", left, turned), back)


def _codes(tape: Tape, x: ir.Value, step: ir.Value) -> ir.Value:
    whole, one, zero = tape.op("Round", tape.op("Div", x, step)), tape.number(1.0), tape.number(0, np.int8)
    return tape.op("DequantizeLinear", tape.op("QuantizeLinear", whole, one, zero), one, zero)


def scales(largest: Array) -> Array:
    """Float32, above 0: of what is 0 in every call, 1 / 127."""
    found: Array = np.maximum(np.where(largest > 0, largest, 1).astype(np.float32) / LARGEST, TINY)
    return found


def _of_heads(step: Array, heads: object) -> Array:
    """[heads, 1, 1], keys' repeated as keys are; a scalar where heads are not known."""
    if not isinstance(heads, int) or len(step) == 1 or heads % len(step):
        whole: Array = step.max(keepdims=True).reshape(())
        return whole
    found: Array = step.repeat(heads // len(step)).reshape(-1, 1, 1)
    return found
