from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime import own_code
from segquant_bench.pipelines.runtime.own_code import TARGET

KEY = "calibration.timesteps"


def own_weights(timesteps: Mapping[str, Any], steps: int, seed: int) -> np.ndarray:
    """The user's weights of the steps, step 0 the noisiest; asked once per process.

    Returns:
        float64 [steps], not negative; only proportions count.

    Raises:
        PipelineError: no such function, it fails, or no weights.
    """
    return np.array(_weights(json.dumps(dict(timesteps), sort_keys=True, default=str), steps, seed))


@lru_cache(maxsize=64)
def _weights(timesteps: str, steps: int, seed: int) -> tuple[float, ...]:
    arguments = json.loads(timesteps)
    target = str(arguments.pop(TARGET))
    function = own_code.find_function(target, f"{KEY}.{TARGET}")
    made = own_code.call(function, arguments, KEY, target, {"steps": steps, "seed": seed})
    what = f"{KEY}.{TARGET}={target}"
    try:
        weights = np.asarray(made, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PipelineError(f"{what} returned no numbers ({one_line(error)}); return {steps} weights") from error
    if weights.shape != (steps,):
        raise PipelineError(
            f"{what} returned weights of shape {list(weights.shape)}; return one for each of {steps} steps"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise PipelineError(f"{what} returned {weights.tolist()}; weights are finite, not negative, and not all zero")
    return tuple(weights.tolist())
