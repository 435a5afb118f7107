"""What a search is after, of one run."""

from __future__ import annotations

import math
from typing import Any

from segquant_bench.eval.metrics.metric import split_name
from segquant_bench.pipelines.config.schema import RunConfig


def objective_values(results: dict[str, Any], config: RunConfig) -> list[float | None]:
    """One value per name in `objective`, of the content of results.json; None where the run has none."""
    return [_value(results, name) for name in config.objective]


def _value(results: dict[str, Any], name: str) -> float | None:
    found = results.get(name)
    if name == "layer_error":
        found = (found or {}).get("geometric_mean")
    elif name == "weight_bytes" and results.get("components"):
        found = sum(part["weight_bytes"] for part in results["components"].values())
    elif name == "quantize_seconds":
        found = math.fsum(results["stages"][stage]["seconds"] for stage in results["quantizing"])
    else:
        metrics = {split_name(each["name"])[0]: each["value"] for each in results["metrics"]}
        found = metrics.get(name, found)
    return None if found is None else float(found)
