from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant_bench.eval.files import find_named
from segquant_bench.eval.json_checks import COUNT, SCALAR, TEXT, list_of, read_checked, record

FILE = "failure.json"
AGAIN = "run that job again"
"""What to do about a broken file."""
_KNOWN = ("name", "model", "dataset", "precision", "seed")
_FAILURE = record(
    {"message": TEXT},
    {**dict.fromkeys(_KNOWN, SCALAR), "overrides": list_of(SCALAR), "tries": COUNT, "mendable": TEXT},
)


@dataclass(frozen=True)
class Failure:
    """A `failure.json`; unknown texts are empty.

    `tries` counts how often the job was begun; `mendable` is what another try may find otherwise, "" of all else.
    """

    path: Path
    name: str
    model: str
    dataset: str
    precision: str
    seed: str
    overrides: tuple[str, ...]
    message: str
    tries: int = 1
    mendable: str = ""


def load_failures(directories: Iterable[Path], skipped: Collection[Path] = ()) -> list[Failure]:
    """Sorted by path, without `skipped` files; EvalError if one is broken."""
    return [load_failure(path) for path in find_failures(directories) if path not in skipped]


def find_failures(directories: Iterable[Path]) -> list[Path]:
    return sorted({path.resolve() for directory in directories for path in find_named(Path(directory), FILE)})


def load_failure(path: Path) -> Failure:
    raw = read_checked(path, _FAILURE, AGAIN)
    texts = {key: _text(raw.get(key)) for key in _KNOWN}
    overrides, tries = tuple(map(str, raw.get("overrides") or ())), raw.get("tries") or 1
    return Failure(
        path, **texts, overrides=overrides, message=raw["message"], tries=tries, mendable=raw.get("mendable") or ""
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)
