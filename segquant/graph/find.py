"""Read cuts and activations off the static graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.fx import Node

from segquant.checks import checked
from segquant.errors import QuantizationError
from segquant.graph.capture.calls import Capture, cuttable_layers
from segquant.graph.capture.capture import capture
from segquant.graph.rules import ops
from segquant.graph.rules.activations import Activations
from segquant.graph.rules.input_cuts import InputTracer, provenance
from segquant.graph.rules.output_cuts import leading_to_cuts, output_cut
from segquant.graph.segments import Segments
from segquant.modules.layers import quantized_count
from segquant.modules.state import own_state
from segquant.modules.wrappers import unwrapped

logger = logging.getLogger(__name__)


@checked(args="")
@own_state()
def find_segments(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> dict[str, Segments]:
    """Where the graph cuts each linear layer and convolution, and which activation feeds it (arXiv 2507.14811).

    A copy runs on fake tensors, else torch.export is tried; no weight is read. Values that the forward branches on are
    logged as warnings. Several calls of a layer keep what all agree on.

    Args:
        model: any; weights may be fake or meta.
        args: example positional arguments; only shapes and dtypes matter, unless values are read.
        kwargs: example keyword arguments.

    Returns:
        `Segments` for every nn.Linear and nn.Conv2d, under all names in `named_modules` order; `Segments()` if never
        called or, with a warning, if its weight is used in part or transposed.

    Raises:
        QuantizationError: no such layer, the forward does not take these arguments, or it branches on values that a
            tensor does not have.
    """
    return segments_of(read_graph(model, args, kwargs))


def read_graph(model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Capture:
    """The graph that `find_segments` reads; raises as that."""
    if not isinstance(args, (tuple, list)):
        raise QuantizationError(
            f"find_segments wants `args` as a tuple of forward arguments, got {type(args).__name__}: "
            "pass (tensor,) for a single one, or use `kwargs`."
        )
    with unwrapped(model) as inner:
        if not cuttable_layers(inner):
            done = "the model is quantized already; pass the float one"
            advice = done if quantized_count(inner) else "pass the module that holds the layers"
            raise QuantizationError(
                f"{type(inner).__name__} has no nn.Linear and no nn.Conv2d among its {len(list(inner.modules()))} "
                f"modules: there is nothing to plan; {advice}."
            )
        return capture(inner, args, kwargs or {})


def segments_of(captured: Capture) -> dict[str, Segments]:
    order = {node: position for position, node in enumerate(captured.graph.nodes)}
    useful = leading_to_cuts(captured.graph)
    found = Activations(captured.graph)
    tracer = InputTracer(provenance(captured.graph, captured.inputs))
    return {
        name: _merged(name, [_segments_of_call(call, order, useful, tracer, found) for call in calls])
        for name, calls in captured.calls.items()
    }


def _segments_of_call(
    call: Node, order: dict[Node, int], useful: frozenset[Node], tracer: InputTracer, found: Activations
) -> Segments:
    cut, given = tracer.cut(call), ops.input_node(call)
    activations = None
    if cut is not None:
        pieces = cut.nodes or (None,) * len(cut.sizes)
        activations = tuple(None if piece is None else found.of(piece, call) for piece in pieces)
    return Segments(
        output=output_cut(call, order, useful),
        input=cut.sizes if cut else None,
        activation=None if given is None else found.of(given, call),
        input_activations=activations,
        skip=cut is not None and cut.nodes is not None and ops.name(call) == "conv2d",
    )


def _merged(name: str, calls: list[Segments]) -> Segments:
    if not calls:
        return Segments()
    agreed: dict[str, Any] = {}
    for field in ("output", "input", "activation"):
        values = {getattr(segments, field) for segments in calls}
        agreed[field] = values.pop() if len(values) == 1 else None
        if values:
            logger.info("%s: its %d calls disagree on %s; taken as none", name, len(calls), field)
    if agreed["input"] is not None:
        pieces = zip(*(segments.input_activations or () for segments in calls), strict=True)
        agreed["input_activations"] = tuple(names[0] if len(set(names)) == 1 else None for names in pieces)
        agreed["skip"] = all(segments.skip for segments in calls)
    return Segments(**agreed)
