"""Whether an engine's integer products are exact on this CPU."""

from __future__ import annotations

import numpy as np

from segquant.deploy.run.engine import Array

ROWS, WIDTH, COLUMNS = 8, 64, 32
LARGEST = 127


def saturating_model() -> bytes:
    """A quantized product of one input "x" [1, ROWS, WIDTH], as ONNX: its pairs of products exceed 16 bits."""
    # Put off: an extra that not everybody installs.
    from onnx import TensorProto, helper, numpy_helper

    shapes = (("x", [1, ROWS, WIDTH]), ("y", [1, ROWS, COLUMNS]))
    given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    constants = {
        "scale": np.float32(1), "zero": np.uint8(128), "codes": np.full((WIDTH, COLUMNS), LARGEST, np.int8),
        "scales": np.ones(COLUMNS, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "probe", [given], [found], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def probe_input() -> Array:
    """For `saturating_model`."""
    return np.full((1, ROWS, WIDTH), LARGEST, np.float32)


def is_exact(found: Array) -> bool:
    """Whether the output is that of exact integers."""
    return bool(np.allclose(found, LARGEST * LARGEST * WIDTH, rtol=1e-3))
