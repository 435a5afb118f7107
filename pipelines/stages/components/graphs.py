from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from segquant.errors import QuantizationError
from segquant.graph.find import find_segments
from segquant.graph.segments import Segments
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.sampling.samples import Batches
from segquant_bench.pipelines.stages.components.inputs import component_batches
from segquant_bench.pipelines.stages.components.methods import component_methods, has_components, kind_of
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.segments import (
    GRAPH_CODE,
    calibration_depends,
    read_segments,
    wants_graph,
    write_segments,
)


def component_segments(name: str, module: nn.Module, batches: Batches) -> dict[str, Segments]:
    """What the graph says of a component's layers.

    Raises:
        PipelineError: the graph cannot be read.
    """
    try:
        return find_segments(module, (), next(iter(batches)))
    except QuantizationError as error:
        off = f"+components.{name}.seglinear=false +components.{name}.dualscale=false"
        raise PipelineError(
            f"the graph of {kind_of(name)} {name!r} cannot be read ({one_line(error)}); quantize it without: {off}"
        ) from error


def _read_graphs(run: Run) -> list[str]:
    return sorted(name for name, method in component_methods(run).items() if wants_graph(method))


def _graphs_depends(run: Run) -> dict[str, Any]:
    return {**calibration_depends(run), "components": _read_graphs(run)}


def _graphs(run: Run, folder: Path) -> None:
    for name in _read_graphs(run):
        found = component_segments(name, run.pipeline.components[name], component_batches(run, name))
        write_segments(folder / f"{name}.json", found)


COMPONENT_GRAPHS = Stage(
    "component_graphs", _graphs, needs=("component_inputs",), code=(*GRAPH_CODE, "pipelines.stages.graph"),
    depends=_graphs_depends, when=has_components, asked=False,
)  # fmt: skip
"""NAME.json: cuts and activations by layer, of components whose method uses them."""


def component_cuts(run: Run, name: str) -> dict[str, Segments]:
    """A component's segments, empty if its method uses none."""
    if name not in _read_graphs(run):
        return {}
    return read_segments(run.folder(COMPONENT_GRAPHS.name) / f"{name}.json")
