"""Graphs before and after they are rewritten for OpenVINO have the same outputs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser

from segquant.deploy.onnx.rewrites import rewrite

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
ATTENTION = (
    HEAD
    + """
agraph (float[b,n,2,4] q, float[b,n,2,4] k, float[b,m,2,4] k2, float[b,n,2,4] v, float[b,m,2,4] v2) => (float y)
<int64[1] all = {-1}, int64[1] two = {-2}, int64[1] first = {-9223372036854775808},
 int64[1] end = {9223372036854775807}, float one = {0.5}, float other = {0.25}>
{
    heads = Transpose<perm=[0,2,1,3]>(q)
    k_heads = Transpose<perm=[0,2,1,3]>(k)
    k2_heads = Transpose<perm=[0,2,1,3]>(k2)
    v_heads = Transpose<perm=[0,2,1,3]>(v)
    v2_heads = Transpose<perm=[0,2,1,3]>(v2)
    keys = Concat<axis=2>(k_heads, k2_heads)
    values = Concat<axis=2>(v_heads, v2_heads)
    sizes = Shape(keys)
    width = Slice(sizes, all, end)
    tokens = Slice(sizes, two, all)
    rest = Slice(sizes, first, two)
    flat = Concat<axis=0>(all, tokens, width)
    back = Concat<axis=0>(rest, width, tokens)
    keys3 = Reshape(keys, flat)
    turned3 = Transpose<perm=[0,2,1]>(keys3)
    turned = Reshape(turned3, back)
    scaled = Mul(heads, one)
    scaled_keys = Mul(turned, other)
    scores = MatMul(scaled, scaled_keys)
    shares = Softmax<axis=-1>(scores)
    y = MatMul(shares, values)
}
"""
)
MODULATION = (
    HEAD
    + """
agraph (float[b,n,4] x, float[b,1,4] scale, float[b,1,4] shift) => (float y, float z)
<float[4] gain = {1, 1, 1, 1}, float[4] smooth = {0.5, 2, 4, 3}>
{
    norm = LayerNormalization<axis=-1>(x, gain)
    scaled = Mul(norm, scale)
    y = Add(scaled, shift)
    z = Div(y, smooth)
}
"""
)
SHAPES = {"b": 3, "n": 5, "m": 2, "1": 1, "2": 2, "4": 4}


def graph(text: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(parser.parse_model(text)))


def outputs(model: ir.Model) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.standard_normal([SHAPES[str(size)] for size in value.shape or ()], np.float32)
        for value in model.graph.inputs
    }
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return list(session.run(None, feeds))


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("text", [ATTENTION, MODULATION])
def test_outputs_stay(text: str) -> None:
    model = graph(text)
    before, old = outputs(model), kinds(model)
    rewrite(model)
    assert kinds(model) != old
    for found, wanted in zip(outputs(model), before, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)


def test_attention_is_written_in_few_nodes() -> None:
    model = graph(ATTENTION)
    rewrite(model)
    assert kinds(model) == {"Concat": 2, "Transpose": 4, "Mul": 1, "MatMul": 2, "Softmax": 1}


OTHERS = {
    "keys of other heads": (ATTENTION.replace("<perm=[0,2,1,3]>(k2)", "<perm=[0,2,3,1]>(k2)"), "Transpose", 5),
    "joined heads": (ATTENTION.replace("Concat<axis=2>", "Concat<axis=1>"), "Transpose", 6),
    "not turned": (ATTENTION.replace("(rest, width, tokens)", "(rest, tokens, width)"), "Mul", 2),
    "a factor per token": (ATTENTION.replace("Mul(turned, other)", "Mul(turned, turned)"), "Reshape", 2),
    "no attention": (ATTENTION.replace("Softmax<axis=-1>", "Sigmoid"), "Mul", 2),
    "a shift per token": (MODULATION.replace("float[b,1,4] shift", "float[b,n,4] shift"), "Div", 1),
    "no norm": (MODULATION.replace("LayerNormalization<axis=-1>(x, gain)", "Mul(x, gain)"), "Div", 1),
}
"""Graphs of another meaning, and how often an operator stays."""


@pytest.mark.parametrize("name", OTHERS)
def test_graphs_of_another_meaning_stay(name: str) -> None:
    text, kind, count = OTHERS[name]
    model = graph(text)
    rewrite(model)
    assert kinds(model)[kind] == count
