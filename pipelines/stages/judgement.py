"""Which metrics a run asks for, and whether its data set can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segquant_bench.pipelines.config.sections import MetricConfig
from segquant_bench.pipelines.errors import PipelineError, nearest

if TYPE_CHECKING:
    from segquant_bench.pipelines.data.datasets import Dataset


def needs_real(config: MetricConfig) -> list[str]:
    """The metrics that compare with real pictures."""
    from segquant_bench.eval.metrics.metrics import NEEDS_REAL

    return [name for name in config.metrics if name in NEEDS_REAL]


def check_metrics(config: MetricConfig, dataset: Dataset | None = None) -> None:
    """PipelineError for a metric that eval does not have, or that needs real pictures where `dataset` has none."""
    from segquant_bench.eval import METRICS

    for name in config.metrics:
        if name not in METRICS:
            raise PipelineError(f"metric.metrics: {name!r} is no metric; {nearest(name, METRICS)}")
    if dataset is not None and not dataset.has_real and needs_real(config):
        others = ",".join(name for name in config.metrics if name not in needs_real(config))
        raise PipelineError(
            f"{needs_real(config)[0]} compares with real pictures, and dataset {dataset.name} has none here; give "
            f"them, or set metric.metrics=[{others}]"
        )
