"""Layers that a method cannot take are refused before anything is computed."""

from __future__ import annotations

import torch
from torch import nn

from segquant.method.spec import Method
from segquant.method.targets import layer_methods, targets
from segquant.modules.layers import as_linear, taps_of
from segquant.solve.lay_out import lay_out_layer
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.files import read_index
from segquant_bench.pipelines.loading.models import denoiser_class, denoiser_in_index
from segquant_bench.pipelines.peers import Peer
from segquant_bench.pipelines.runtime.cache import find_finished
from segquant_bench.pipelines.stages.quantize import QUANTIZE
from segquant_bench.pipelines.stages.run import Run


def check_layers(run: Run) -> None:
    """Lay out the denoiser as its configuration says it is, without weights; quantizing checks again.

    Raises:
        PipelineError: groups that do not divide the inputs of a layer, of another tool.
        QuantizationError: likewise, of segquant.
    """
    if not run.has(QUANTIZE.name) or not _has_groups(run.method):
        return
    if find_finished(QUANTIZE.name, run.cache, run.record(QUANTIZE.name)) is not None:
        return
    module = _empty_denoiser(run)
    if module is None:
        return
    if isinstance(run.method, Peer):
        run.method.check(module, run.method.layers(module))
        return
    layers = targets(module, run.method)
    for name, method in layer_methods(layers, run.method).items():
        lay_out_layer(as_linear(layers[name]), method, None, name, taps_of(layers[name]))


def _has_groups(method: Method | Peer) -> bool:
    if isinstance(method, Method) and any("precision" in changes for _, changes in method.targets.overrides):
        return True
    specs = (method.scheme.weight, method.scheme.input)
    return any(spec is not None and spec.block is not None for spec in specs)


def _empty_denoiser(run: Run) -> nn.Module | None:
    """None of what is told better where the model is loaded."""
    # put off: it loads accelerate, which other runs do without
    from segquant_bench.pipelines.loading.blocks import empty_module

    config, index = run.config.model, read_index(run.directory)
    name = denoiser_in_index(index, config.denoiser)
    if index[name][0] != "diffusers" or not (run.directory / name / "config.json").is_file():
        return None
    kind, folder = denoiser_class(config, run.directory)
    try:
        return empty_module(kind, folder, getattr(torch, config.dtype), config.variant)
    except PipelineError:
        return None
