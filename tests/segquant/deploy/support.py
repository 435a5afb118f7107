"""One quantized layer as a graph of its own, without tracing; and engines to run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from segquant.deploy.onnx import write
from segquant.deploy.onnx.convolutions import convolution
from segquant.deploy.onnx.forms import PROFILES, Profile, form_of
from segquant.deploy.onnx.manifest import Manifest
from segquant.deploy.onnx.products import linear
from segquant.deploy.onnx.tape import Tape, array
from segquant.deploy.onnx.work import Work
from segquant.deploy.run.engine import Engine
from segquant.deploy.run.openvino import OpenVino
from segquant.deploy.run.ort import Ort
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantConv2d
from segquant.transforms.chain import chain_of
from segquant.transforms.smoothing import Smoothing

ENGINES: dict[str, Any] = {"ort": Ort, "openvino": OpenVino, "openvino, any size": partial(OpenVino, fixed=False)}
"""OpenVINO rewrites graphs otherwise where sizes are known."""


def profile_for(engine: str) -> Profile:
    """What a file for one of ENGINES is written by."""
    return PROFILES[engine.partition(",")[0]]


def layer_graph(layer: QuantLayer, rank: int, profile: str, every_cpu: bool = True) -> ir.Model:
    """Inputs x0, x1 …: of each branch, transformed unless it is a convolution; outputs y0, y1 …"""
    chosen = PROFILES[profile]
    form = form_of(layer, chosen)
    image = isinstance(layer, QuantConv2d)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "com.microsoft": 1}, name="layer")
    for branch in range(len(layer.layout.branches)):
        x = ir.Value(name=f"x{branch}", shape=ir.Shape([None] * rank), type=ir.TensorType(ir.DataType.FLOAT))
        graph.inputs.append(x)
        tape = Tape(graph)
        tape.begin(f"branch{branch}")
        work = Work(tape, "layer", layer.layout, layer.tensors(), branch, chosen, every_cpu, image)
        if image:
            x = _smoothed(tape, layer, branch, x)
            left, right, top, bottom = layer.window.padding
            y = convolution(work, x, layer.window, (top, left, bottom, right), form)
        else:
            y = linear(work, x, rank, form)
        y.name, y.shape, y.type = f"y{branch}", ir.Shape([None] * rank), ir.TensorType(ir.DataType.FLOAT)
        graph.extend(tape.nodes)
        graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def _smoothed(tape: Tape, layer: QuantConv2d, branch: int, x: ir.Value) -> ir.Value:
    if not any(isinstance(transform, Smoothing) for transform in layer.layout.transforms):
        return x
    vector = layer.smooth[branch][:: layer.window.taps].view(1, -1, 1, 1)
    return tape.op("Div", x, tape.constant(f"smooth{branch}", lambda: array(vector)))


def layer_inputs(layer: QuantLayer, x: Tensor) -> tuple[dict[str, np.ndarray], list[Tensor]]:
    """What `layer_graph` takes, and what is added to each branch's product."""
    feeds, beside = {}, []
    for branch in range(len(layer.layout.branches)):
        image = isinstance(layer, QuantConv2d)
        given, extra = (x, []) if image else chain_of(layer.layout, layer.tensors(), branch).run(x)
        feeds[f"x{branch}"] = given.numpy()
        beside.append(sum(extra, torch.zeros(1)))
    return feeds, beside


def started(engine: str, model: ir.Model, folder: Path, form: str = "int8", every_cpu: bool = True) -> Engine:
    """The engine with a graph, set up as `load_exported` does."""
    path = folder / f"{engine}.onnx"
    ir.save(model, path)
    manifest = Manifest(profile_for(engine).name, "Layer", {}, [], {}, [], [], {"layer": form}, every_cpu=every_cpu)
    found: Engine = ENGINES[engine](path, manifest)
    return found


def run_layer(engine: str, layer: QuantLayer, x: Tensor, folder: Path) -> tuple[Tensor, Engine]:
    """The layer's output by an engine."""
    profile = profile_for(engine)
    running = started(engine, layer_graph(layer, x.dim(), profile.name), folder, form_of(layer, profile))
    feeds, beside = layer_inputs(layer, x)
    parts = [torch.from_numpy(part) + extra for part, extra in zip(running.run(feeds), beside, strict=True)]
    return torch.cat(parts, dim=1 if isinstance(layer, QuantConv2d) else -1), running


@contextmanager
def traced_once() -> Iterator[None]:
    """Exports inside are of one model: tracing takes most of the time, and every profile starts from the same graph."""
    found: list[Any] = []
    traced, as_onnx = write.traced, write.as_onnx

    def program(*given: Any) -> Any:
        if not found:
            found.append(traced(*given))
        return found[0]

    def graph(*given: Any) -> ir.Model:
        if len(found) < 2:
            found.append(as_onnx(*given))
        return found[1].clone()

    write.traced, write.as_onnx = program, graph
    try:
        yield
    finally:
        write.traced, write.as_onnx = traced, as_onnx


def distance(found: Tensor, exact: Tensor) -> Tensor:
    """Of each element, relative to the largest."""
    return (found - exact).abs() / exact.abs().max()
