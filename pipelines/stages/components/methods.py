from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from segquant.method.spec import Method
from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.files import read_index
from segquant_bench.pipelines.stages.run import Run

ABLE = ("text_encoder", "controlnet")
"""What names of components say that can be quantized beside the denoiser."""


def has_components(config: RunConfig) -> bool:
    return bool(config.other_components)


def component_methods(run: Run) -> dict[str, Method]:
    """Without the denoiser's; refuses bad names."""
    names = run.config.other_components
    if not names:
        return {}
    parts = {name: [part.kind, part.kind] for name, part in run.config.model.parts.items()}
    check_components({**read_index(run.directory), **parts}, names)
    return {name: component_method(run.config, name) for name in names}


def check_components(index: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse names that are no text encoders or ControlNets of the pipeline.

    Raises:
        PipelineError: missing, empty, or of another kind.
    """
    components = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    able = [name for name, kind in components.items() if any(word in name for word in ABLE) and kind is not None]
    for name in names:
        pipeline = index["_class_name"]
        if name not in components:
            hint = nearest(name, ["denoiser", *able])
            raise PipelineError(f"quantize names {name!r}, which {pipeline} does not have; {hint}")
        if components[name] is None:
            raise PipelineError(f"quantize names {name!r}, which is empty in this {pipeline}; take it out of quantize")
        if name not in able:
            raise PipelineError(
                f"quantize names {name!r} ({components[name]}), which is neither text encoder nor ControlNet; here it "
                f"takes {', '.join(['denoiser', *able])}"
            )


def component_method(config: RunConfig, name: str) -> Method:
    """The run's method changed by `components.NAME`, without the denoiser's `skip` and `overrides`.

    Raises:
        PipelineError: a setting that the quantizer does not take.
    """
    changes = config.components.get(name, {})
    quantizer = {key: value for key, value in config.quantizer.items() if key not in ("skip", "overrides")}
    try:
        method = build_method(dataclasses.replace(config, quantizer={**quantizer, **changes}))
    except PipelineError as error:
        raise PipelineError(f"{kind_of(name)} {name!r}: {error}") from error
    if not isinstance(method, Method):
        raise PipelineError(f"{method.name} cannot quantize {kind_of(name)} {name!r}; choose a method of segquant")
    return method


def kind_of(name: str) -> str:
    return "ControlNet" if "controlnet" in name else "text encoder"
