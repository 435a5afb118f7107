from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.results import RunResult


def read_per_image(run: RunResult, name: str) -> np.ndarray:
    """Float64 [n]."""
    path = _evaluation_file(run, "per_image.json")
    try:
        return np.array([float(v) for v in _read_json(path)["metrics"][name]])
    except KeyError as error:
        raise EvalError(f"{path} has no values of {name}; evaluate that run again") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise EvalError(f"{path} is not readable JSON; evaluate that run again") from error


def read_replicates(run: RunResult, name: str) -> tuple[np.ndarray, dict[str, str]]:
    """Bootstrap replicates of FID or KID, and their seed and n."""
    path = _evaluation_file(run, "features.safetensors")
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            drawn = stored.get_tensor(f"replicates/{name}")
    except SafetensorError as error:
        raise EvalError(f"{path} has no bootstrap of {name} ({error}); evaluate that run again") from error
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
