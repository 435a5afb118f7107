"""What a search is after: names in `objective`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from segquant_bench.hints import nearest
from segquant_bench.pipelines.errors import PipelineError

KNOWN = ("output_error", "layer_error", "weight_bytes", "quantize_seconds")
"""Of every run, the less the better; the others are metrics."""
WAYS = {"lower": "minimize", "higher": "maximize"}


def check_objective(names: Sequence[str], metrics: Collection[str]) -> None:
    """PipelineError for no name, one that repeats, or one that is neither known nor a metric of the run."""
    if not names or len(set(names)) < len(names):
        raise PipelineError(f"objective=[{','.join(names)}] must have at least one name, and each once")
    for name in names:
        if name not in (*KNOWN, *metrics):
            raise PipelineError(
                f"objective={name} is neither known nor in metric.metrics; {nearest(name, {*KNOWN, *metrics})}"
            )


def directions(names: Sequence[str]) -> dict[str, str]:
    """By name "minimize" or "maximize"; PipelineError for a metric of which that is not known."""
    from segquant_bench.eval.metrics.registry import known_metric  # put off: a search alone asks

    found = {}
    for name in names:
        metric = known_metric(name)
        if name not in KNOWN and metric is None:
            raise PipelineError(f"objective={name} is no metric of which is known what is better; choose another")
        found[name] = WAYS[metric.direction] if metric is not None else WAYS["lower"]
    return found
