from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.files import find_named

FILE = "failure.json"


@dataclass(frozen=True)
class Failure:
    """A `failure.json`; unknown texts are empty."""

    path: Path
    name: str
    model: str
    dataset: str
    precision: str
    seed: str
    overrides: tuple[str, ...]
    message: str


def load_failures(directories: Iterable[Path]) -> list[Failure]:
    """Sorted by path."""
    paths = {path.resolve() for directory in directories for path in find_named(Path(directory), FILE)}
    return [_load(path) for path in sorted(paths)]


def _load(path: Path) -> Failure:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} is not readable JSON ({error}); run that job again") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("message"), str):
        raise EvalError(f"{path} has no message; run that job again")
    texts = {key: _text(raw.get(key)) for key in ("name", "model", "dataset", "precision", "seed")}
    return Failure(path, **texts, overrides=tuple(map(str, raw.get("overrides") or ())), message=raw["message"])


def _text(value: Any) -> str:
    return "" if value is None else str(value)
