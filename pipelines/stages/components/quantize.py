from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant.errors import QuantizationError
from segquant.files import write_json
from segquant.graph.segments import Segments
from segquant.keep import Keeper
from segquant.method.spec import Method
from segquant.modules.tensors import model_weight_bytes
from segquant.quantize.outcome import Outcome
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime.own_code import TARGET
from segquant_bench.pipelines.runtime.unfinished import PIECES
from segquant_bench.pipelines.sampling.samples import Batches
from segquant_bench.pipelines.stages.components.graphs import component_cuts
from segquant_bench.pipelines.stages.components.inputs import component_batches, component_samples
from segquant_bench.pipelines.stages.components.methods import component_methods, has_components, kind_of
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.inputs import QUANTIZING_CODE
from segquant_bench.pipelines.stages.shared.own import method_code
from segquant_bench.pipelines.stages.shared.quantized import component_errors, load_model, quantize_copy, save_model
from segquant_bench.pipelines.stages.shared.segments import calibration_depends

RECORD = "components.json"


def quantize_component(
    name: str,
    module: nn.Module,
    method: Method,
    batches: Batches,
    segments: Mapping[str, Segments],
    keep: Keeper | None = None,
) -> tuple[nn.Module, Outcome | None]:
    """A quantized copy, and its outcome.

    Raises:
        PipelineError: the method cannot do it.
    """
    try:
        return quantize_copy(module, method, batches, segments, f"{method.name} ({name})", keep)
    except QuantizationError as error:
        raise PipelineError(
            f"{kind_of(name)} {name!r}: {one_line(error)} (settings of it alone: +components.{name}.KEY=VALUE)"
        ) from error


def component_bytes(pipeline: Any) -> dict[str, int]:
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {name: model_weight_bytes(module) for name, module in modules.items()}


def load_component(folder: Path, module: nn.Module) -> nn.Module:
    """The stored quantized component on `module`'s device; no float weight is held twice."""
    device = next(module.parameters()).device
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in module.parameters()
    }
    return load_model(folder, copy.deepcopy(module, memo)).to(device).eval()


def _depends(run: Run) -> dict[str, Any]:
    target = run.config.quantizer[TARGET]
    methods = {
        name: {**method.to_dict(), **method_code(target, method)} for name, method in component_methods(run).items()
    }
    return {**calibration_depends(run), "methods": methods}


def _compute(run: Run, folder: Path) -> None:
    size = run.config.calibration.batch_size
    errors = {}
    for name, method in component_methods(run).items():
        module = run.pipeline.components[name]
        batches, segments = component_batches(run, name), component_cuts(run, name)
        keep = Keeper(folder / PIECES).within(name)
        quantized, outcome = quantize_component(name, module, method, batches, segments, keep)
        save_model(quantized, folder / name, outcome)
        held_out = component_samples(run, name, "held_out")
        errors[name] = component_errors(name, module, quantized, held_out, size, run.device, keep)
    record = {"components": errors, "weight_bytes": component_bytes(run.pipeline), "denoiser": run.denoiser_name}
    write_json(folder / RECORD, record)


COMPONENTS = Stage(
    "components", _compute, needs=("component_inputs", "component_graphs"),
    code=("pipelines.stages.shared.quantized", *QUANTIZING_CODE), depends=_depends, when=has_components,
    keeps=(PIECES,),
)  # fmt: skip
"""NAME/: each quantized component; components.json: errors, and bytes of every component."""


def quantized_components(run: Run) -> dict[str, nn.Module]:
    """The quantized components but the denoiser."""
    if not run.has(COMPONENTS.name):
        return {}
    folder = run.folder(COMPONENTS.name)
    return {name: load_component(folder / name, run.pipeline.components[name]) for name in run.config.other_components}
