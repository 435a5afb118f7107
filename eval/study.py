"""A search's trials, and which of them no other one beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segquant_bench.eval.files import find_named
from segquant_bench.eval.json_checks import (
    AMOUNT,
    ANYTHING,
    COUNT,
    TEXT,
    VALUE,
    list_of,
    mapping_of,
    one_of,
    read_checked,
    record,
)
from segquant_bench.eval.tables.numbers import short
from segquant_bench.eval.tables.table import Cell, Column, Table

FILE = "study.json"
COMPLETE = "complete"
AGAIN = "the same command writes it anew"
_TRIAL = record(
    {"number": COUNT, "folder": TEXT, "params": mapping_of(ANYTHING), "state": TEXT, "values": list_of(VALUE)},
    {"layer_error": AMOUNT},
)
_STUDY = record(
    {
        "schema": one_of((1,)),
        "objectives": mapping_of(one_of(("minimize", "maximize"))),
        "trials": list_of(_TRIAL),
    },
    {},
)


@dataclass(frozen=True)
class Trial:
    number: int
    folder: str
    state: str
    values: tuple[float, ...]
    params: dict[str, Any]
    layer_error: float | None


@dataclass(frozen=True)
class Search:
    """`objectives` are names with "minimize" or "maximize"."""

    path: Path
    objectives: dict[str, str]
    trials: tuple[Trial, ...]

    def front(self) -> list[Trial]:
        """Those that no other one beats: nowhere worse, and better in one objective."""
        done = [trial for trial in self.trials if trial.state == COMPLETE and len(trial.values) == len(self.objectives)]
        losses = [self._losses(trial) for trial in done]
        return [
            trial
            for trial, own in zip(done, losses, strict=True)
            if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in losses)
        ]

    def told(self, trial: Trial) -> dict[str, str]:
        """Its parameters as texts, with as many digits as tell them from those of other trials."""
        every = [each.params for each in self.trials]
        return {key: short(value, [each.get(key) for each in every]) for key, value in trial.params.items()}

    def _losses(self, trial: Trial) -> tuple[float, ...]:
        ways = self.objectives.values()
        return tuple(-v if way == "maximize" else v for v, way in zip(trial.values, ways, strict=True))


def load_searches(directories: Iterable[Path]) -> list[Search]:
    """EvalError if one is broken."""
    paths = {path for folder in directories if Path(folder).is_dir() for path in find_named(Path(folder), FILE)}
    return [_load(path) for path in sorted(paths)]


def _load(path: Path) -> Search:
    raw = read_checked(path, _STUDY, AGAIN)
    trials = [
        Trial(
            each["number"], each["folder"], each["state"], tuple(float(value) for value in each["values"]),
            each["params"], each.get("layer_error"),
        )
        for each in raw["trials"]
    ]  # fmt: skip
    return Search(path, raw["objectives"], tuple(trials))


def front_table(search: Search) -> Table:
    """The front, by the first objective."""
    sign = -1.0 if "maximize" in list(search.objectives.values())[:1] else 1.0
    best = sorted(search.front(), key=lambda trial: sign * trial.values[0])
    return _table(search, [replace(trial, params=search.told(trial)) for trial in best], _title(search))


def trials_table(search: Search) -> Table:
    """Every trial, for CSV."""
    return _table(search, search.trials, "")


def _title(search: Search) -> str:
    states = [trial.state for trial in search.trials]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
    return f"Search of {' and '.join(search.objectives)}: what no other trial beats (of {counted})"


def _table(search: Search, trials: Sequence[Trial], title: str) -> Table:
    keys = list(dict.fromkeys(key for trial in search.trials for key in trial.params))
    front = {trial.number for trial in search.front()}
    heads = [Column("trial", "key"), *(Column(key.lstrip("+"), "key") for key in keys)]
    heads += [Column(f"{name} {'↑' if way == 'maximize' else '↓'}", "key") for name, way in search.objectives.items()]
    heads += [Column("layer error", "key"), Column("state", "key"), Column("front", "key"), Column("folder", "key")]
    rows = tuple(_row(trial, keys, len(search.objectives), trial.number in front) for trial in trials)
    return Table(tuple(heads), (rows,), title=title)


def _row(trial: Trial, keys: Sequence[str], objectives: int, front: bool) -> tuple[Cell, ...]:
    values = [f"{value:.6g}" for value in trial.values] or [""] * objectives
    error = "" if trial.layer_error is None else f"{trial.layer_error:.4g}"
    texts = [str(trial.number), *(str(trial.params.get(key, "")) for key in keys), *values, error, trial.state]
    return tuple(map(Cell, [*texts, "yes" if front else "", trial.folder]))
