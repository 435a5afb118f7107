"""Record the operators of one run on fake tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from segquant.errors import QuantizationError
from segquant.graph.capture.calls import Capture, find_calls, note_called, parameter_names
from segquant.graph.capture.copies import example_copy, fake_copy, real_copy, tensors_in, unreal, with_values
from segquant.graph.capture.origins import Origins, Reads, ValuesNeeded
from segquant.modules.memory import free_bytes

logger = logging.getLogger(__name__)
_VALUES = (ValuesNeeded, DataDependentOutputException, DynamicOutputShapeException)


def recorded(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> Capture:
    """Run a copy of `model` on the arguments' values and record its operators.

    Weights are fake, or real (random for meta) if the forward reads values that depend on them.

    Raises:
        QuantizationError: the forward reads arguments without values, or random weights do not fit in memory.
    """
    try:
        fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        return _run(fake_copy(model, fake_mode, device, values=True), args, kwargs, device, fake_mode)
    except _VALUES as error:
        if any(unreal(tensor) for tensor in tensors_in((args, kwargs))):
            raise
        missing = _require_room(model, device)
        logger.info(
            "%s: its control flow depends on weights (%s); run with their values%s",
            type(model).__name__,
            error,
            ", drawn at random as they have none" if missing else "",
        )
    return _run(real_copy(model, device), args, kwargs, device, FakeTensorMode(allow_non_fake_inputs=True))


def _run(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device, mode: FakeTensorMode
) -> Capture:
    given = example_copy(args, kwargs, with_values(mode, device))
    origins = Origins()
    for label, value in [*((f"argument {i}", v) for i, v in enumerate(given[0])), *given[1].items()]:
        for tensor in tensors_in(value):
            origins.name(tensor, label)
    for name, parameter in model.named_parameters():
        origins.name(parameter, name)
    inputs, ran = list(tensors_in(given)), note_called(model)

    def forward(*_: Tensor) -> list[Tensor]:
        for tensor in tensors_in(model(*given[0], **given[1])):
            tensor.detach()  # an operator, so that the graph shows what is used outside
        return []

    trace = make_fx(forward, pre_dispatch=True, _allow_non_fake_inputs=True, _error_on_data_dependent_ops=False)
    devices = [device] if device.type == "cuda" else []
    eager = torch.compiler.set_stance("force_eager")  # FlexAttention compiles itself when it is called
    with torch.random.fork_rng(devices), torch.no_grad(), eager, origins, Reads(origins):
        module = trace(*inputs)
    for read in origins.notes.reads.values():
        logger.warning("%s: the graph holds only where %s", type(model).__name__, read)
    graph = module.graph
    parameters = {
        node: getattr(module, node.target)
        for node in graph.nodes
        if node.op == "get_attr" and isinstance(getattr(module, node.target, None), nn.Parameter)
    }
    placeholders = frozenset(node for node in graph.nodes if node.op == "placeholder")
    calls = find_calls(graph, model, parameters, ran)
    return Capture(graph, calls, placeholders, parameter_names(model, parameters))


def _require_room(model: nn.Module, device: torch.device) -> bool:
    """Whether weights must be drawn; refused where they would not fit."""
    needed = sum(p.numel() * p.element_size() for p in model.parameters() if unreal(p))
    free = free_bytes(device)
    if free is not None and needed > free:
        raise QuantizationError(
            f"{type(model).__name__} branches on values that depend on its weights, which have none; drawing them "
            f"at random takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: use a smaller configuration "
            "or pass `segments` by hand."
        )
    return needed > 0
