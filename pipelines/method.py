"""From configuration to what segquant and eval take, refused early where they would refuse it late."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipelines.config import RunConfig
from pipelines.errors import PipelineError, nearest
from pipelines.sections import MetricConfig

if TYPE_CHECKING:
    from pipelines.datasets import Dataset
    from pipelines.peers import Peer
    from segquant import Method


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that moves a bar, on terminals only."""
    from tqdm import tqdm

    with tqdm(desc=label, disable=None, leave=False) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.set_description(f"{label}: {what}", refresh=False)
            bar.total, bar.n = total or None, done
            bar.refresh()

        yield show


def needs_real(config: MetricConfig) -> list[str]:
    """The metrics that compare with real pictures."""
    from eval.metrics import NEEDS_REAL

    return [name for name in config.metrics if name in NEEDS_REAL]


def check_metrics(config: MetricConfig, dataset: Dataset | None = None) -> None:
    """PipelineError for a metric that eval does not have, or that needs real pictures where `dataset` has none."""
    from eval import METRICS

    for name in config.metrics:
        if name not in METRICS:
            raise PipelineError(f"metric.metrics: {name!r} is no metric; {nearest(name, METRICS)}")
    if dataset is not None and not dataset.has_real and needs_real(config):
        others = ",".join(name for name in config.metrics if name not in needs_real(config))
        raise PipelineError(
            f"{needs_real(config)[0]} compares with real pictures, and dataset {dataset.name} has none here; give "
            f"them, or set metric.metrics=[{others}]"
        )


def build_method(config: RunConfig) -> Method | Peer:
    """The method of a run; see `build_quantizer`."""
    return build_quantizer(config.quantizer)


def build_quantizer(quantizer: Mapping[str, Any]) -> Method | Peer:
    """Call the function that a quantizer configuration names: a preset, or another tool's quantizer.

    Raises:
        PipelineError: a value that it refuses, a precision that it cannot do, a tool that is not installed, or no
            such function.
    """
    arguments = {key: value for key, value in quantizer.items() if key not in ("_target_", "name")}
    package, _, function = str(quantizer["_target_"]).rpartition(".")
    name = quantizer.get("name") or function
    preset = getattr(importlib.import_module(package), function, None)
    if preset is None:
        raise PipelineError(f"{package}.{function} does not exist; choose one of conf/quantizer")
    known = quantizer_keys(preset)
    for key in arguments:
        if key not in known:
            raise PipelineError(f"{name} takes no {key!r} (quantizer.{key}); {nearest(key, known)}")
    try:
        return preset(**arguments)
    except TypeError as error:
        raise PipelineError(f"quantizer={name}: {error}") from error
    except ValueError as error:
        raise PipelineError(str(error)) from error


def quantizer_keys(preset: Callable[..., Any]) -> set[str]:
    """Names of everything that a preset takes."""
    from segquant import presets

    parameters = inspect.signature(preset).parameters.values()
    own = {item.name for item in parameters if item.kind is not item.VAR_KEYWORD}
    return own | set(presets.Common.__annotations__) if len(own) < len(parameters) else own
