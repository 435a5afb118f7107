from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.json_checks import VALUE, list_of, mapping_of, read_checked, record
from segquant_bench.eval.results import RunResult

AGAIN = "evaluate that run again"
_PER_IMAGE = record({"metrics": mapping_of(list_of(VALUE))}, {})


def read_per_image(run: RunResult, name: str) -> np.ndarray:
    """Float64 [n]."""
    path = _evaluation_file(run, "per_image.json")
    stored = read_checked(path, _PER_IMAGE, AGAIN)["metrics"]
    if name not in stored:
        raise EvalError(f"{path} has no values of {name}; {AGAIN}")
    return np.array([float(value) for value in stored[name]])


def read_replicates(run: RunResult, name: str) -> tuple[np.ndarray, dict[str, str]]:
    """Bootstrap replicates of FID or KID, and their seed and n."""
    path = _evaluation_file(run, "features.safetensors")
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            drawn = stored.get_tensor(f"replicates/{name}")
    except SafetensorError as error:
        raise EvalError(f"{path} has no bootstrap of {name} ({error}); {AGAIN}") from error
    if drawn.ndim != 1 or not drawn.size or drawn.dtype.kind != "f" or not np.isfinite(drawn).all():
        raise EvalError(f"{path} has no finite numbers as the bootstrap of {name}; {AGAIN}")
    return drawn, {key: metadata.get(key, "") for key in ("seed", "n")}


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
