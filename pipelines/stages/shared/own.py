"""Hashes of the user's own code for the keys of stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from segquant import registry
from segquant.method.spec import Method
from segquant_bench.pipelines.config.backend import find_backend
from segquant_bench.pipelines.config.own_paths import model_paths
from segquant_bench.pipelines.config.schema import REFERENCE
from segquant_bench.pipelines.config.sections import MetricConfig, ModelConfig
from segquant_bench.pipelines.peers import Peer
from segquant_bench.pipelines.runtime.own_modules import own_digest
from segquant_bench.pipelines.stages.shared.judgement import asked_metrics


def model_code(model: ModelConfig) -> dict[str, str | None]:
    """For stages that sample: the pipeline's classes."""
    found = own_digest(*model_paths(model).values())
    return {} if found is None else {"own_code": found}


def method_code(target: str, method: Method | Peer) -> dict[str, str | None]:
    """For stages that quantize: the function, and the parts of its method."""
    kinds = [method.apply] if isinstance(method, Peer) else [*_parts(method.to_dict())]
    found = own_digest(target, *(_path(kind) for kind in kinds))
    return {} if found is None else {"own_code": found}


def metric_code(config: MetricConfig) -> dict[str, str | None]:
    own = [name for name in config.metrics if "." in name]
    found = own_digest(*own, *(_path(metric.compute) for metric in asked_metrics(config)))
    return {} if found is None else {"own_code": found}


def backend_code(value: Any) -> dict[str, Any]:
    """For stages that run quantized layers; empty for the reference."""
    if value == REFERENCE:
        return {}
    choice = find_backend(value)
    names = [name for name in (choice.name, choice.fallback) if name is not None]
    code = own_digest(*(_path(registry.find("backend", name)) for name in names))
    return {"backend": names, **({} if code is None else {"own_code": code})}


def _path(found: Any) -> str:
    function = getattr(found, "func", found)  # of functools.partial
    return f"{function.__module__}.{getattr(function, '__qualname__', '')}"


def _parts(values: Any) -> Iterator[Any]:
    names = set(_texts(values))
    for slot in registry.SLOTS:
        if slot != "precision":  # told by its fields
            yield from (part for name, part in registry.table(slot).items() if name in names)


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)
