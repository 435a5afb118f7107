"""Data of searches: their trials, and the front among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segquant_bench.eval.report.page.links import folder_link, is_below
from segquant_bench.eval.study import COMPLETE, Search, Trial

RECORD = "results.json"


def searches_data(searches: Sequence[Search], rows: Mapping[Path, int], folder: Path) -> list[dict[str, Any]]:
    """Of each search its objectives and the trials that have values of all; `rows` by path, `folder` is the page's."""
    return [_search(search, rows, folder) for search in searches]


def _search(search: Search, rows: Mapping[Path, int], folder: Path) -> dict[str, Any]:
    front = {trial.number for trial in search.front()}
    done = [each for each in search.trials if each.state == COMPLETE and len(each.values) == len(search.objectives)]
    ways = {"minimize": "lower", "maximize": "higher"}
    return {
        "objectives": [{"name": name, "better": ways[way]} for name, way in search.objectives.items()],
        "trials": [_trial(search, trial, trial.number in front, rows, folder) for trial in done],
        "others": len(search.trials) - len(done),
    }


def _trial(search: Search, trial: Trial, front: bool, rows: Mapping[Path, int], folder: Path) -> dict[str, Any]:
    home = search.path.parent
    record = home / trial.folder / RECORD
    is_own = bool(trial.folder) and is_below(record, home)  # a foreign file may name any folder
    return {
        "number": trial.number,
        "row": rows.get(record) if is_own else None,
        "url": folder_link(record, folder) if is_own else "",
        "told": " ".join(f"{key.lstrip('+')}={value}" for key, value in search.told(trial).items()),
        "values": list(trial.values),
        "front": front,
    }
