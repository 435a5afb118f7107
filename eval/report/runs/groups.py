"""Which runs may be compared, and their order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from segquant_bench.eval.report.runs.known import method_rank, precision_rank
from segquant_bench.eval.report.runs.leaves import is_within, leaves
from segquant_bench.eval.report.runs.once import once_per_run
from segquant_bench.eval.results import AUTO, REFERENCE, RunResult

DENOISER = "denoiser"
SHIPPED = re.compile(r"^.*/pipelines/zoo/(?=.)")
"""What lies before a file of this repository in its path: another folder in every clone."""
ENGINE = {"fallback": None, "rest": "refuse", "every_cpu": True, "bfloat16": False, "attention": "torch"}
"""Settings of engines that are not told."""
PACKAGES = ("segquant", "segquant_bench", "pipelines")
"""Where methods of this repository are; the last of older runs."""
SETUP = tuple(f"model.{key}" for key in ("call", "dtype", "scheduler", "scheduler_settings", "pipeline", "control"))
"""Other reference pictures: runs that differ in these are not compared."""
ELSEWHERE = ("name", "logger", "cache", "report", "polarity", "model.path", "model.repo", "model.revision",
              "model.variant", "model.device", "model.parts", "model.name", "dataset.name")  # fmt: skip
"""Told last: places, and what changes no number."""


def sort_runs(runs: Sequence[RunResult]) -> list[RunResult]:
    """By model, dataset, seed, prompts, precision, components, method; one unquantized run, first."""
    unique: dict[object, RunResult] = {}
    for run in runs:
        key = (data_key(run), _judgement(run), engine_told(run)) if run.is_float else run.path
        unique.setdefault(key, run)
    return sorted(unique.values(), key=_order)


@once_per_run
def _order(run: RunResult) -> tuple[Any, ...]:
    return (
        run.model, run.fingerprint, run.dataset, run.seed, (len(run.prompts), run.prompts), setup(run),
        not run.is_float, precision_rank(run.precision), _parts_rank(quantized_parts(run)), bool(home(run)),
        method_rank(run.quantizer), _engine_rank(run.engine), run.name, _natural(run.path.parent.name),
    )  # fmt: skip


def _parts_rank(parts: tuple[str, ...]) -> tuple[bool, int, tuple[str, ...]]:
    """The denoiser alone, with others, then others without it."""
    return (DENOISER not in parts, len(parts), parts)


def _engine_rank(engine: str) -> int:
    return (REFERENCE, AUTO).index(engine) if engine in (REFERENCE, AUTO) else 2


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]


@once_per_run
def data_key(run: RunResult) -> tuple[str, str, str, int, tuple[str, ...], str]:
    """Runs of equal key share a grid or an axis."""
    return (run.model, run.fingerprint, run.dataset, run.seed, run.prompts, setup(run))


@once_per_run
def config_leaves(run: RunResult) -> Mapping[str, Any]:
    """Of its configuration; empty of older results.

    Shipped files are the same in every clone, and what an older run was not told is what it did.
    """
    found = {key: _shipped(value) for key, value in leaves(run.config).items()}
    usual = {f"run.{key}": value for key, value in ENGINE.items()} if run.config.get("run") else {}
    return {**usual, **found}


def _shipped(value: Any) -> Any:
    return SHIPPED.sub("zoo:", value) if isinstance(value, str) else value


@once_per_run
def setup(run: RunResult) -> str:
    """The settings of sampling, as JSON."""
    found = {key: value for key, value in config_leaves(run).items() if is_within(key, SETUP)}
    return json.dumps(found, sort_keys=True, default=str)


@once_per_run
def _judgement(run: RunResult) -> str:
    found = {key: value for key, value in config_leaves(run).items() if is_within(key, ("metric", "dataset", "stages"))}
    return json.dumps(found, sort_keys=True, default=str)


@once_per_run
def group_key(run: RunResult) -> tuple[object, str, tuple[str, ...]]:
    """Runs of equal key may be compared."""
    return (data_key(run), "" if run.is_float else run.precision, quantized_parts(run))


@once_per_run
def quantized_parts(run: RunResult) -> tuple[str, ...]:
    """The denoiser first."""
    named = [] if run.is_float else run.config.get("quantize") or [DENOISER]
    return tuple(sorted(named, key=lambda part: (part != DENOISER, part)))


@once_per_run
def engine_told(run: RunResult) -> str:
    """Its name, and settings other than usual: "openvino bfloat16=True"."""
    given = run.config.get("run") or {}
    told = [f"{key}={given[key]}" for key, usual in ENGINE.items() if given.get(key, usual) != usual]
    return " ".join([run.engine, *told])


def home(run: RunResult) -> str:
    """The module of the user's own method, else empty."""
    quantizer = run.config.get("quantizer")
    target = str(quantizer.get("_target_", "")) if isinstance(quantizer, Mapping) else ""
    return "" if target.partition(".")[0] in ("", *PACKAGES) else target.rpartition(".")[0]
