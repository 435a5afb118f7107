"""From a model to a graph of ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir import convenience
from torch import nn
from torch.export import Dim, ExportedProgram

from segquant.deploy.onnx.attention import SCORES, Ranges
from segquant.deploy.onnx.convolutions import convolution
from segquant.deploy.onnx.forms import Profile
from segquant.deploy.onnx.inputs import Arguments, Wrapped
from segquant.deploy.onnx.products import linear
from segquant.deploy.onnx.rewrites import rewrite
from segquant.deploy.onnx.scores import scores
from segquant.deploy.onnx.squeezes import explicit_squeezes
from segquant.deploy.onnx.tape import Tape
from segquant.deploy.onnx.traced import CONVOLUTION, DOMAIN, TracedLinear
from segquant.deploy.onnx.work import Work
from segquant.errors import QuantizationError, first_line
from segquant.layers.layer import QuantLayer
from segquant.modules.state import own_state
from segquant.modules.swap import evaluating, swapped

OPSET = 21
"""The first with 4-bit integers and blocks."""
FUSED = "com.microsoft"


@own_state()
def traced(
    model: nn.Module, layers: Mapping[str, QuantLayer], forms: Mapping[str, str], arguments: Arguments, dynamic: bool
) -> ExportedProgram:
    """The model with a node of DOMAIN for each product of a quantized layer."""
    stand_ins = {
        id(layer): TracedLinear(layer, number, forms[name]) for number, (name, layer) in enumerate(layers.items())
    }
    free = tuple(dict.fromkeys(range(tensor.dim()), Dim.AUTO) for tensor in arguments.tensors)
    with swapped(model, stand_ins) as inner, evaluating(inner), _quiet():
        try:
            return torch.export.export(
                Wrapped(inner, arguments),
                tuple(arguments.tensors),
                dynamic_shapes={"tensors": free} if dynamic else None,
                strict=False,
            )
        except QuantizationError:
            raise
        except Exception as error:  # anything may come out of another one's forward
            advice = "; dynamic=False exports the example's shapes alone" if dynamic else ""
            raise QuantizationError(
                f"torch.export does not take {type(model).__name__} ({first_line(error)}){advice}"
            ) from error


@own_state()
def as_onnx(program: ExportedProgram, arguments: Arguments, outputs: list[str]) -> ir.Model:
    """The graph, products not written out; an output that is named as an input gets "_out"."""
    names = [name.replace(".", "_") for name in arguments.names]
    explicit_squeezes(program)
    with _quiet():
        found = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=[f"{name}_out" if name in names else name for name in outputs],
            verbose=False,
        )
    assert found is not None
    return found.model


def write_out(
    model: ir.Model,
    layers: Mapping[str, QuantLayer],
    forms: Mapping[str, str],
    profile: Profile,
    every_cpu: bool,
    ranges: Ranges | None = None,
) -> None:
    """Put nodes of the standard in the place of the products' and of attention's scores, in place."""
    tape, names = Tape(model.graph), list(layers)
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        old = node.outputs[0]
        if node.op_type == SCORES:
            tape.begin(f"{node.attributes['attention'].as_string()}/{SCORES}")
            new = scores(tape, node, ranges or {})
        else:
            name = names[node.attributes["layer"].as_int()]
            tape.begin(node.name or name)
            new = _product(tape, node, name, layers[name], forms[name], profile, every_cpu)
        new.shape, new.type = old.shape, old.type
        convenience.replace_nodes_and_values(model.graph, node, [node], tape.nodes, [old], [new])
    if profile.rewritten:
        rewrite(model)
    model.opset_imports.pop(DOMAIN, None)
    if any(node.domain == FUSED for node in model.graph):
        model.opset_imports[FUSED] = 1
    for key in [key for key, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[key]
    _without_remarks(model)


def _product(
    tape: Tape, node: ir.Node, name: str, layer: Any, form: str, profile: Profile, every_cpu: bool
) -> ir.Value:
    image, branch = node.op_type == CONVOLUTION, node.attributes["branch"].as_int()
    work = Work(tape, name, layer.layout, layer.tensors(), branch, profile, every_cpu, image)
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    if image:
        pads: Any = node.attributes["pads"].as_ints()
        return convolution(work, x, layer.window, pads, form)
    return linear(work, x, len(x.shape), form)


def _without_remarks(model: ir.Model) -> None:
    """Stack traces and names of Python objects at every node: more bytes than a small model's weights."""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch tells those who maintain it."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch._export", "onnxscript", "onnx_ir")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
