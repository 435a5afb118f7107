from __future__ import annotations

import importlib
from collections.abc import Sequence

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics import clip, distances, perceptual, pixel
from segquant_bench.eval.metrics.backends import Backends
from segquant_bench.eval.metrics.metric import Metric, split_name
from segquant_bench.hints import nearest

METRICS: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Make a metric known by its name, and return it; EvalError if the name is taken."""
    if not isinstance(metric, Metric):
        raise EvalError(f"register_metric takes a Metric, got {metric!r}")
    if METRICS.setdefault(metric.name, metric) != metric:
        raise EvalError(f"there is a metric {metric.name!r} already; choose another name")
    return metric


for _family in (distances.METRICS, clip.METRICS, perceptual.METRICS, pixel.METRICS):
    for _metric in _family:
        register_metric(_metric)


def find_metric(name: str) -> Metric:
    """The metric of that name, or at a Python path such as ``their_pkg.metrics.BRIGHTNESS``; else EvalError.

    The path is imported: take it from the user, never from a file of results.
    """
    if name in METRICS:
        return METRICS[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise EvalError(f"metric {name!r} is unknown; {nearest(name, METRICS)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EvalError(f"metric {name!r} cannot be imported ({error}); give the path of a Metric") from error
    if not isinstance(found, Metric):
        raise EvalError(f"{name} is a {type(found).__name__}, not a Metric")
    return register_metric(found)


def find_metrics(names: Sequence[str]) -> list[Metric]:
    """EvalError for an unknown, repeated or missing name."""
    if not names:
        raise EvalError(f"no metrics were asked for; choose from {', '.join(METRICS)}")
    found = [find_metric(name) for name in names]
    if len({metric.name for metric in found}) != len(found):
        raise EvalError(f"a metric is asked for twice: {', '.join(names)}")
    return found


def check_metrics(metrics: Sequence[Metric], prompts: Sequence[str], backends: Backends) -> None:
    """What can be known without pictures.

    Raises:
        EvalError: prompts that a metric cannot judge by, or a network that cannot be had.
    """
    for metric in metrics:
        metric.check(prompts, backends)
    for network in dict.fromkeys(network for metric in metrics for network in metric.networks):
        network.check(backends)


def known_metric(result_name: str) -> Metric | None:
    """The metric behind a result's name, if registered."""
    return METRICS.get(split_name(result_name)[0])


def place(result_name: str) -> tuple[int, int]:
    """The result's order in comparisons and figures."""
    metric = known_metric(result_name)
    return (1, 0) if metric is None else (0, metric.order)
