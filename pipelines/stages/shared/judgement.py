from __future__ import annotations

from typing import TYPE_CHECKING

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.sections import MetricConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime import own_code

if TYPE_CHECKING:
    from segquant_bench.eval import Metric
    from segquant_bench.pipelines.data.datasets import Dataset


def asked_metrics(config: MetricConfig) -> list[Metric]:
    """The metrics of a run, in order, the user's own imported.

    Raises:
        PipelineError: no such metric.
    """
    from segquant_bench.eval import METRICS, EvalError, Metric  # eval imports numpy: not for `segquant --help`
    from segquant_bench.eval.metrics.registry import find_metrics

    for name in config.metrics:
        if name not in METRICS and "." not in name:
            raise PipelineError(f"metric.metrics: {name!r} is no metric; {nearest(name, METRICS)}")
        if name not in METRICS and not isinstance(found := own_code.find(name, "metric.metrics"), Metric):
            raise PipelineError(
                f"metric.metrics: {name} is a {type(found).__name__}, not a Metric; name a segquant_bench.eval.Metric"
            )
    try:
        return find_metrics(config.metrics)
    except EvalError as error:
        raise PipelineError(f"metric.metrics: {error}") from error


def needs_real(config: MetricConfig) -> list[str]:
    """The metrics that compare with real pictures."""
    return [metric.name for metric in asked_metrics(config) if metric.needs_real]


def check_metrics(config: MetricConfig, dataset: Dataset | None = None) -> None:
    """PipelineError for an unknown metric, or if real pictures are missing."""
    if needs_real(config) and dataset is not None and not dataset.has_real:
        raise PipelineError(without_real(config, dataset.name))


def without_real(config: MetricConfig, dataset: str) -> str:
    """The sentence for a data set without real pictures that a metric compares with."""
    asked = zip(config.metrics, asked_metrics(config), strict=True)
    others = ",".join(name for name, metric in asked if not metric.needs_real)
    return (
        f"{needs_real(config)[0]} compares with real pictures, and dataset {dataset} has none here; give them, or set "
        f"metric.metrics=[{others}]"
    )
