"""What a configuration makes of `run=auto`, before anything is known of the machine."""

from __future__ import annotations

from segquant_bench.pipelines.config.engine import AUTO
from segquant_bench.pipelines.config.schema import REFERENCE, RunConfig
from segquant_bench.pipelines.config.target import PEERS
from segquant_bench.pipelines.runtime.own_code import TARGET


def engine_name(config: RunConfig) -> str:
    """The engine; the reference for a `run=auto` that no machine would run by kernels."""
    return REFERENCE if config.run.name == AUTO and why_no_kernels(config) is not None else config.run.name


def why_no_kernels(config: RunConfig) -> str | None:
    """Why the configuration leaves `run=auto` nothing but the reference; None if it does not."""
    if config.is_float:
        return "quantizer=none quantizes nothing"
    if config.backend != REFERENCE:
        return f"backend={config.backend} runs the quantized layers"
    if str(config.quantizer[TARGET]).rpartition(".")[0] == PEERS:
        return own_layers(config)
    if config.model.offload == "blocks":
        return "model.offload=blocks leaves the denoiser on disk"
    return None


def own_layers(config: RunConfig) -> str:
    return f"quantizer={config.quantizer_name} runs layers of its own"
