from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segquant_bench.eval.results import Interval


@dataclass(frozen=True)
class Curve:
    """One line, with 95 % intervals; `path` is the `results.json` of a line that is one run's."""

    label: str
    ours: bool
    x: tuple[float, ...]
    y: tuple[float, ...]
    intervals: tuple[Interval | None, ...]
    path: Path | None = None


Panels = dict[str, list[Curve]]
