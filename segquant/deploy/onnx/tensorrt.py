"""What TensorRT's ONNX parser takes, as rules: the package itself needs a GPU to check a file.

Taken from onnx-tensorrt's docs/operators.md and its importer of QuantizeLinear and DequantizeLinear (TensorRT 10).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

PAIR = ("QuantizeLinear", "DequantizeLinear")
CODES = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN)
OPERATORS = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DeformConv", "DepthToSpace", "DequantizeLinear", "Div",
    "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GridSample", "GroupNormalization", "GRU", "HardSigmoid", "HardSwish", "Hardmax", "Identity",
    "If", "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "LogSoftmax", "Loop", "LRN", "LSTM", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool", "Mean",
    "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero", "Not", "OneHot",
    "Or", "Pad", "Pow", "PRelu", "QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
    "Resize", "ReverseSequence", "RNN", "RoiAlign", "Round", "Scan", "Scatter", "ScatterElements", "ScatterND",
    "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign",
    "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK",
    "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
})  # fmt: skip


def violations(model: ir.Model) -> list[str]:
    """What the parser would refuse, a sentence's end each; empty if nothing."""
    found = [problem for node in model.graph for problem in _of_node(node)]
    for name, value in (*model.graph.initializers.items(), *((each.name, each) for each in model.graph.inputs)):
        if value.dtype in (ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.DOUBLE):
            found.append(f"{name} is {value.dtype.name}, which it has no tensors of")
    return found


def _of_node(node: ir.Node) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        yield f"it has no operator {node.domain + '.' if node.domain else ''}{node.op_type}"
    elif node.op_type in PAIR:
        yield from _of_pair(node)
    elif node.op_type == "Cast":
        kinds = [ir.DataType(node.attributes["to"].as_int()), node.inputs[0].dtype if node.inputs[0] else None]
        if any(kind in CODES for kind in kinds):
            yield f"{node.name} casts codes, which only QuantizeLinear and DequantizeLinear may make and take"


def _of_pair(node: ir.Node) -> Iterator[str]:
    data, scale, zero = (*node.inputs, None)[:3]
    scales = None if scale is None or scale.const_value is None else scale.const_value.numpy()
    if scales is None:
        yield f"{node.name} has a scale that is no constant"
        return
    if not (scales.astype(np.float32) > 0).all():
        yield f"{node.name} has a scale that is not positive"
    if zero is not None:
        if zero.dtype not in CODES:
            yield f"{node.name} has codes of {zero.dtype.name if zero.dtype else 'an unknown type'}, not signed ones"
        elif zero.const_value is None or (zero.const_value.numpy().astype(np.float32) != 0).any():
            yield f"{node.name} has a zero point that is not 0"
    codes = None if data is None or data.const_value is None else data.const_value
    if codes is None:
        if scales.size > 1:
            yield f"{node.name} has {scales.size} scales for an activation, which takes one"
        return
    yield from _of_weight(node, codes, scales)


def _of_weight(node: ir.Node, codes: ir.TensorProtocol, scales: np.ndarray) -> Iterator[str]:
    sizes = list(codes.shape.numpy())
    if codes.dtype == ir.DataType.INT4 and sizes[-1] % 2:
        yield f"{node.name} has 4-bit codes with an odd last dimension ({sizes[-1]})"
    if scales.size == 1:
        return
    if scales.ndim == 1:
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        if sizes[axis] != scales.size:
            yield f"{node.name} has {scales.size} scales for {sizes[axis]} channels"
        return
    cut = [index for index, (size, count) in enumerate(zip(sizes, scales.shape, strict=True)) if size != count]
    if len(cut) != 1 or sizes[cut[0]] % scales.shape[cut[0]]:
        yield f"{node.name} has blocks along more than one dimension"
