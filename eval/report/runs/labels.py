"""Names of runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segquant_bench.eval.report.runs.groups import (
    DENOISER,
    ELSEWHERE,
    SETUP,
    config_leaves,
    engine_told,
    group_key,
    home,
    quantized_parts,
    setup,
)
from segquant_bench.eval.report.runs.known import PRECISIONS, is_ours
from segquant_bench.eval.report.runs.leaves import fewest, is_within, told
from segquant_bench.eval.report.runs.once import once_per_run
from segquant_bench.eval.report.runs.seeds import SEED, calibration_seed
from segquant_bench.eval.results import REFERENCE, RunResult
from segquant_bench.eval.tables.numbers import joined, short
from segquant_bench.texts import plain

VARIED = ("quantizer", "precision", "calibration", "correction", "components", "encoders")
"""Sections in which runs of one method may differ; "encoders" is of older runs."""
_UNTOLD = ("_target_", "name", "precision")
OVERRIDES = "quantizer.overrides"
"""Told whole: a layer's own precision is no row's."""


def places(runs: Sequence[RunResult]) -> dict[int, str]:
    """By `id` of the run, what differs but the method."""
    sampling = setups(runs)
    asked: list[Callable[[RunResult], str]] = [lambda run: run.model, lambda run: run.dataset]
    asked += [lambda run: f"seed {run.seed}", prompts_name, lambda run: sampling[id(run)]]
    differing = [name for name in asked if len({name(run) for run in runs}) > 1]
    return {id(run): joined(*(name(run) for name in differing)) for run in runs}


def setups(runs: Sequence[RunResult]) -> dict[int, str]:
    """By `id` of the run, the settings of sampling that differ: ``num_inference_steps=8``."""
    models: dict[str, list[RunResult]] = {}
    for run in runs:
        models.setdefault(run.model, []).append(run)
    found: dict[int, str] = {}
    for members in models.values():
        if len({setup(run) for run in members}) == 1:
            found |= dict.fromkeys(map(id, members), "")
            continue
        every = [config_leaves(run) for run in members]
        known = [values for values in every if values]  # older results hold no configuration
        keys = fewest(known, [key for key in dict.fromkeys(key for v in known for key in v) if is_within(key, SETUP)])
        found |= {
            id(run): told(values, keys, every) if values else "" for run, values in zip(members, every, strict=True)
        }
    return found


@once_per_run
def prompts_name(run: RunResult) -> str:
    """Number and hash: ``128 prompts (1f2e3d)``."""
    digest = hashlib.sha256("\n".join(run.prompts).encode(errors="surrogatepass")).hexdigest()
    return f"{len(run.prompts)} prompts ({digest[:6]})"


@once_per_run
def method_name(run: RunResult) -> str:
    """Quantizer, correction, other components as "+NAME", or "@NAME" without the denoiser."""
    correction = settings(run).get("correction.method") or "none"
    added = [] if correction in ("none", run.quantizer) else [correction]
    parts = quantized_parts(run)
    others = [part for part in parts if part != DENOISER]
    if parts and DENOISER not in parts:
        return f"{run.quantizer}@{'+'.join(others)}"
    return "+".join([run.quantizer, *added, *others])


@once_per_run
def settings(run: RunResult) -> dict[str, Any]:
    """Of method, backend and engine, by dotted key."""
    found = {
        key: value
        for section in VARIED
        for key, value in _flat(run.config.get(section) or {}, section)
        if (is_within(key, (OVERRIDES,)) or key.rpartition(".")[2] not in _UNTOLD)
        and not (section == "precision" and _is_named(run))
    }
    if run.seed_runs:
        found[SEED] = "+".join(str(calibration_seed(each)) for each in run.seed_runs)
    return {**found, "backend": _backend(run), "run": engine_told(run)}


def _is_named(run: RunResult) -> bool:
    """Whether the precision is told by its name; the fields of these are in younger results only."""
    return (run.config.get("precision") or {}).get("name") in PRECISIONS


def is_subject(run: RunResult) -> bool:
    """Whether the method is SegQuant's, auto, or the user's own."""
    return is_ours(run.quantizer) or bool(home(run))


def _backend(run: RunResult) -> str:
    found = run.config.get("backend") or REFERENCE
    return str(found.get("_target_") if isinstance(found, Mapping) else found)


def _flat(values: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(values, Mapping):
        return [(prefix, values)]
    if "." in prefix and "_target_" in values:  # told by the path of one's own function, as another's name is
        rest = {key: value for key, value in values.items() if key != "_target_"}
        return [(prefix, values["_target_"]), *_flat(rest, prefix)]
    return [pair for key, value in values.items() for pair in _flat(value, f"{prefix}.{key}")]


def labels(runs: Sequence[RunResult], untold: Sequence[str] = ()) -> dict[int, str]:
    """By `id` of the run: its method, and the settings, but `untold` ones, that tell it apart in its group.

    Settings read "+seglinear" or "alpha=0.5". Same names of different packages get their module. Where several
    engines ran segquant's layers, each of those runs names its own.
    """
    engines = {engine_told(run) for run in runs if _runs_ours(run)}
    families: dict[object, list[RunResult]] = {}
    for run in runs:
        families.setdefault((group_key(run), method_name(run)), []).append(run)
    found = {}
    for members in families.values():
        keys = [key for key in _differing(members) if key not in untold]
        homes = {home(run) for run in members}
        for run in members:
            name = _unquantized(run) if run.is_float else method_name(run)
            if len(members) > 1 and not run.is_float:
                place = f"{name} ({home(run)})" if len(homes) > 1 and home(run) else name
                name = (
                    " ".join([place, *_told(settings(run), keys, [settings(each) for each in members])])
                    if keys or untold or len(homes) > 1
                    else run.name
                )
            if len(engines) > 1 and _runs_ours(run) and "run" not in (*keys, *untold):
                name = f"{name} run={engine_told(run)}"
            found[id(run)] = name
    return found if untold else _told_apart(runs, found)


def _runs_ours(run: RunResult) -> bool:
    return not (run.is_float or run.has_own_layers)


def _unquantized(run: RunResult) -> str:
    return "unquantized" if run.engine == REFERENCE else f"unquantized run={engine_told(run)}"


def _told_apart(runs: Sequence[RunResult], names: dict[int, str]) -> dict[int, str]:
    alike: dict[object, list[RunResult]] = {}
    for run in runs:
        alike.setdefault((group_key(run), plain(names[id(run)])), []).append(run)
    found = dict(names)
    for members in alike.values():
        added = _additions(members) if len(members) > 1 else {}
        for run in members:
            if more := added.get(id(run)):
                name = names[id(run)]
                found[id(run)] = f"{method_name(run) if name == run.name and not run.is_float else name} {more}"
    return found


def _additions(runs: Sequence[RunResult]) -> dict[int, str]:
    every = [config_leaves(run) for run in runs]
    keys = list(dict.fromkeys(key for values in every for key in values))
    last = [key for key in keys if is_within(key, ELSEWHERE)]
    chosen = fewest(every, last, fewest(every, [key for key in keys if key not in last]))
    return {id(run): told(values, chosen, every) for run, values in zip(runs, every, strict=True)}


def _differing(runs: Sequence[RunResult]) -> list[str]:
    every = [settings(run) for run in runs]
    keys = dict.fromkeys(key for values in every for key in values)
    return [key for key in keys if len({repr(values.get(key)) for values in every}) > 1]


def _told(values: Mapping[str, Any], keys: Sequence[str], every: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for key in keys:
        value, name = values.get(key), key.partition(".")[2] or key
        if isinstance(value, bool):
            found += [f"+{name}"] if value else []
        else:
            found.append(f"{name}={'none' if value is None else short(value, [each.get(key) for each in every])}")
    return found
