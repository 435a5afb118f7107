"""How long a run will take, from stages in the cache that are like its own."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant_bench.durations import spoken
from segquant_bench.pipelines.runtime.cache import is_there
from segquant_bench.pipelines.runtime.health import COSTS, RECORD
from segquant_bench.pipelines.stages.run import Run

LOOKED_AT = 32
"""Newest stages of a name that are compared: a cache may hold thousands."""
SAME = ("model", "dtype", "device")
"""Of a sampling stage, what no scaling makes up for."""


@dataclass(frozen=True)
class Estimate:
    """Of the stages that a run will compute: about how many seconds, where the cache has one alike, and the others."""

    seconds: Mapping[str, float]
    unknown: Sequence[str]

    def sentence(self) -> str:
        """For the log; empty where there is nothing to compute."""
        if not self.seconds:
            names = ", ".join(self.unknown)
            return f"the cache has no stage like {names}: first batches will tell the time" if names else ""
        parts = ", ".join(f"{name} {spoken(seconds)}" for name, seconds in self.seconds.items())
        told = f"about {spoken(sum(self.seconds.values()))}, as the most similar stages in the cache took: {parts}"
        return f"{told}; no such stage of {', '.join(self.unknown)}" if self.unknown else told


def estimate(run: Run) -> Estimate:
    """Nothing is computed; stages that are there take no time."""
    seconds: dict[str, float] = {}
    unknown = []
    for name in _missing(run):
        found = _alike(name, run.record(name), run.cache / "stage")
        if found is None:
            unknown.append(name)
        else:
            seconds[name] = found
    return Estimate(seconds, tuple(unknown))


def _missing(run: Run) -> list[str]:
    """Stages to compute, in the table's order: those asked for, and what these need."""
    stages = {stage.name: stage for stage in run.table if run.has(stage.name)}
    waiting = [name for name, stage in stages.items() if stage.asked]
    found = set()
    while waiting:
        name = waiting.pop()
        if name not in found and not is_there(name, run.cache, run.record(name)):
            found.add(name)
            waiting += [need for need in stages[name].needs if need in stages]
    return [name for name in stages if name in found]


def _alike(name: str, wanted: Mapping[str, Any], folder: Path) -> float | None:
    """Seconds that the most similar stage took, scaled by prompts, steps and pixels; None without one."""
    best, took = -1, None
    for record in _records(name, folder):
        depends = record["depends"]
        if not _comparable(wanted, depends):
            continue
        likeness = len(_leaves(wanted) & _leaves(depends))
        if likeness > best:  # of several, the newest
            best, took = likeness, record[COSTS[0]] * _work(wanted) / _work(depends)
    return took


def _records(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """stage.json of finished stages, newest first; what cannot be read, or is another stage, is passed over."""
    found = []
    for path in folder.glob(f"{name}-*/{RECORD}"):
        try:
            if path.is_file():  # no pipe, of which there is no end
                found.append((path.stat().st_mtime, path))
        except OSError:
            continue
    for _, path in heapq.nlargest(LOOKED_AT, found):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            usable = record["name"] == name and isinstance(record["depends"], dict) and 0 <= record[COSTS[0]] < 1e9
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        if usable:
            yield record


def _comparable(wanted: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ours, theirs = _part(wanted, "depends", "sampling"), _part(other, "depends", "sampling")
    if ours or theirs:
        return _engine(wanted) == _engine(other) and all(ours.get(key) == theirs.get(key) for key in SAME)
    needs, known = _part(wanted, "needs"), _part(other, "needs")
    return not needs or any(known.get(key) == value for key, value in needs.items())


def _engine(record: Mapping[str, Any]) -> object:
    """Some export and compile for minutes before the first picture; the reference is not written down."""
    return _part(record, "depends", "engine").get("name")


def _work(record: Mapping[str, Any]) -> float:
    """What the time goes with, as far as the record says: prompts, steps and pixels."""
    prompts = _part(record, "depends").get("prompts")
    lists = list(prompts.values()) if isinstance(prompts, Mapping) else [prompts]
    count = sum(len(each) for each in lists if isinstance(each, list))
    call = _part(record, "depends", "sampling", "call")
    sizes = [call.get(key) for key in ("num_inference_steps", "height", "width")]
    return max(count, 1) * math.prod(size for size in sizes if isinstance(size, int | float) and size > 0)


def _part(record: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _leaves(value: Any, path: str = "") -> frozenset[tuple[str, str]]:
    if isinstance(value, Mapping):
        return frozenset().union(*(_leaves(item, f"{path}/{key}") for key, item in value.items()))
    return frozenset({(path, json.dumps(value, sort_keys=True))})
