"""Nodes and constants of an ONNX graph, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from torch import Tensor

Array = np.ndarray[Any, Any]
_FLOATS = {"fp8": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}


class Tape:
    """New nodes of one graph; constants are stored once by their names."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: list[ir.Node] = []
        self.prefix = ""
        self._count = 0

    def begin(self, prefix: str) -> None:
        """Start with another node's name."""
        self.prefix, self.nodes = prefix, []

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output, which is returned."""
        self._count += 1
        name = f"{self.prefix}/{kind}_{self._count}"
        output = ir.Value(name=f"{name}:0")
        node = ir.node(kind, list(inputs), attributes, domain=domain, outputs=[output], name=name)
        self.nodes.append(node)
        return output

    def constant(self, name: str, make: Callable[[], Any]) -> ir.Value:
        """The constant of that name, made if there is none yet."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(make(), name=name)
            value = ir.Value(name=name, shape=ir.Shape(list(tensor.shape.numpy())), type=ir.TensorType(tensor.dtype))
            value.const_value = tensor
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def narrow(self, name: str, make: Callable[[], Array]) -> ir.Value:
        """A float32 constant, stored in bfloat16 if that holds it; engines widen it once, as they load it."""
        if name not in self.graph.initializers:
            exact = make()
            half = exact.astype(ml_dtypes.bfloat16)
            self.constant(name, lambda: half if (half.astype(np.float32) == exact).all() else exact)
        stored = self.graph.initializers[name]
        return stored if stored.dtype == ir.DataType.FLOAT else self.op("Cast", stored, to=int(ir.DataType.FLOAT))

    def number(self, value: float, kind: Any = np.float32) -> ir.Value:
        """A scalar."""
        array = np.asarray(value, dtype=kind)
        return self.constant(f"number/{array.dtype}/{array.item()!r}", lambda: array)

    def whole(self, *values: int) -> ir.Value:
        """A list of integers: axes, a shape, …."""
        return self.constant(f"list/{','.join(map(str, values))}", lambda: np.array(values, dtype=np.int64))


def array(tensor: Tensor) -> Array:
    """Contiguous, on the CPU."""
    found: Array = tensor.detach().cpu().contiguous().numpy()
    return found


def int4(codes: Tensor) -> Array:
    """int8 codes from −8 to 7 as 4-bit integers."""
    return array(codes).astype(ml_dtypes.int4)


def uint4(codes: Tensor) -> Array:
    """Codes from 0 to 15 as 4-bit integers."""
    return array(codes).astype(ml_dtypes.uint4)


def fp8(codes: Tensor, dtype: str = "fp8") -> Array:
    """Bytes of 8-bit floats."""
    return array(codes).view(_FLOATS[dtype])
