"""What TensorRT gets of 4-bit weights in groups: four bits where it has such tensors, and the name says which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

import onnx_ir as ir

from segquant import Segments, presets, quantize_
from segquant.deploy.onnx.forms import PROFILES, form_of
from segquant.deploy.onnx.tensorrt import violations
from tests.segquant.deploy.support import layer_graph

STORED = {"4-bit blocks": ir.DataType.INT4, "8-bit blocks": ir.DataType.INT8}


@pytest.mark.parametrize("precision", ["w4a8", "w4a16"])
@pytest.mark.parametrize(
    ("rows", "form"), [((24,), "4-bit blocks"), ((33,), "8-bit blocks"), ((11, 13), "8-bit blocks")], ids=str
)
def test_blocks_are_called_as_they_are_stored(precision: str, rows: tuple[int, ...], form: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, sum(rows)))
    method = presets.rtn(precision, seglinear=True, deploy="tensorrt")
    segments = Segments(output=rows) if len(rows) > 1 else Segments()
    (layer,) = quantize_(model, method, [(torch.randn(8, 64),)], {"0": segments})
    form = form if len(layer.layout.branches) == len(rows) else "4-bit blocks"
    graph = layer_graph(layer, 3, "tensorrt")
    assert form_of(layer, PROFILES["tensorrt"]) == form and violations(graph) == []
    codes = {value.dtype for name, value in graph.graph.initializers.items() if name.endswith(".codes")}
    assert codes == {STORED[form]}
