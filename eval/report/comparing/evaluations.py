from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.json_checks import VALUE, list_of, mapping_of, read_checked, record
from segquant_bench.eval.report.runs.once import once_per_run
from segquant_bench.eval.results import RunResult

AGAIN = "evaluate that run again"
LEFT_OUT = "left_out"
_PER_IMAGE = record({"metrics": mapping_of(list_of(VALUE))}, {})


@once_per_run
def read_per_image(run: RunResult, name: str) -> np.ndarray:
    """Float64 [n]."""
    path = _evaluation_file(run, "per_image.json")
    stored = read_checked(path, _PER_IMAGE, AGAIN)["metrics"]
    if name not in stored:
        raise EvalError(f"{path} has no values of {name}; {AGAIN}")
    return np.array([float(value) for value in stored[name]])


@once_per_run
def read_replicates(run: RunResult, name: str) -> tuple[np.ndarray, dict[str, str]]:
    """A metric of all pictures together on parts of them, and the parts: kind, seed and n.

    The kind is "left_out", or "replicates" (bootstraps of older results, and of metrics that keep them), by the seed.
    """
    path = _evaluation_file(run, "features.safetensors")
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata, names = stored.metadata() or {}, list(stored.keys())
            kind = LEFT_OUT if f"{LEFT_OUT}/{name}" in names else "replicates"
            drawn = stored.get_tensor(f"{kind}/{name}")
    except SafetensorError as error:
        raise EvalError(f"{path} has no resamples of {name} ({error}); {AGAIN}") from error
    if drawn.ndim != 1 or drawn.size < 2 or drawn.dtype.kind != "f" or not np.isfinite(drawn).all():
        raise EvalError(f"{path} has no finite numbers as the resamples of {name}; {AGAIN}")
    parts = {key: metadata.get(key, "") for key in ("seed", "n")}
    return drawn, {"kind": kind, **(parts if kind != LEFT_OUT else {"n": parts["n"]})}


def _evaluation_file(run: RunResult, name: str) -> Path:
    folder = run.folder("evaluation")
    if folder is None or not (folder / name).is_file():
        raise EvalError(f"pictures are not compared, because {run.path} leads to no {name}; evaluate it again")
    return folder / name


def has_per_image(run: RunResult, name: str) -> bool:
    return _holds(lambda: read_per_image(run, name))


def has_replicates(run: RunResult, name: str) -> bool:
    return _holds(lambda: read_replicates(run, name))


def _holds(read: Callable[[], object]) -> bool:
    try:
        read()
    except EvalError:
        return False
    return True
