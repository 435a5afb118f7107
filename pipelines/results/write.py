"""results.json, with paths relative to it."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segquant.files import write_json
from segquant.method.plan_file import PLAN
from segquant_bench.pipelines.config.backend import find_backend
from segquant_bench.pipelines.config.engine import AUTO
from segquant_bench.pipelines.config.own_paths import own_record
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.peers import Peer
from segquant_bench.pipelines.runtime import provenance
from segquant_bench.pipelines.runtime.cache import Finished, copy_tree
from segquant_bench.pipelines.stages.components.quantize import RECORD as COMPONENTS
from segquant_bench.pipelines.stages.generate import BACKENDS, ENGINE, pictures_folder
from segquant_bench.pipelines.stages.polarity import FILE as POLARITY
from segquant_bench.pipelines.stages.quantize import ERRORS
from segquant_bench.pipelines.stages.reference import SIZE
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared.contents import file_contents
from segquant_bench.pipelines.stages.shared.engine import engine_of, why_reference
from segquant_bench.pipelines.stages.shared.segments import graph_record, wants_graph
from segquant_bench.pipelines.stages.speed import FILE as SPEED

SCHEMA = 1


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def layer_summary(errors: dict[str, float]) -> dict[str, float | int | None]:
    """Mean, median, geometric mean (0 if any error is 0) and number of relative errors; None without layers."""
    values = list(errors.values())
    if not values:
        return {"mean": None, "median": None, "geometric_mean": None, "n": 0}
    positive = all(value > 0 for value in values)
    geometric = math.exp(statistics.fmean(math.log(value) for value in values)) if positive else 0.0
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "geometric_mean": geometric,
        "n": len(values),
    }


def stage_records(stages: dict[str, Finished], folder: Path) -> dict[str, dict[str, Any]]:
    """Cost, key and relative path by stage."""
    records = {}
    for name, stage in stages.items():
        record = asdict(stage)
        del record["name"]
        records[name] = {**record, "path": os.path.relpath(stage.path, folder)}
    return records


def quantizing_stages(run: Run) -> list[str]:
    """Those whose cost is the method's own: a graph only where the method cuts by it."""
    found = []
    if run.config.quantizes_denoiser:
        found = ["graph", "quantize"] if not isinstance(run.method, Peer) and wants_graph(run.method) else ["quantize"]
    return found + [name for name in ("component_graphs", "components") if name in run.finished]


def denoiser_errors(run: Run) -> dict[str, Any]:
    """Errors on held-out inputs, and sizes; no errors for a float denoiser."""
    size = read_json(run.folder("reference") / SIZE)["weight_bytes"]
    if not run.config.quantizes_denoiser:
        found = {"layer_errors": {}, "output_error": 0.0, "per_row_output_errors": [], "weight_bytes": size}
        found |= {"per_row_steps": [], "per_row_prompts": [], "per_row_energies": [], "statistics": None}
        found["layer_step_errors"] = None
    else:
        found = read_json(run.folder("quantize") / ERRORS)
        signs = read_json(run.folder("polarity") / POLARITY) if run.has("polarity") else {}
        found["statistics"] = {"segments": graph_record(run.folder("graph")), "polarity": signs}
    return {**found, "layer_error": layer_summary(found["layer_errors"]), "weight_bytes_float": size}


def component_records(run: Run) -> dict[str, dict[str, Any]]:
    """By component: bytes, and errors of all but the denoiser; empty where it is alone."""
    if not run.config.other_components:
        return {}
    found = read_json(run.folder("components") / COMPONENTS)
    records = {name: {"weight_bytes": size, "weight_bytes_float": size} for name, size in found["weight_bytes"].items()}
    records[found["denoiser"]]["weight_bytes"] = denoiser_errors(run)["weight_bytes"]
    for name, errors in found["components"].items():
        records[name] = {**errors, "layer_error": layer_summary(errors["layer_errors"])}
    return records


def correction_record(run: Run) -> dict[str, Any] | None:
    """What was corrected and how well it fitted; None if nothing."""
    if not run.config.is_corrected:
        return None
    head = read_json(run.folder("correct") / "correction.json")
    return {"name": run.config.correction.name, "method": head["method"], **head["record"]}


def backend_record(run: Run) -> dict[str, Any]:
    """The backend asked for and layers per backend; None and empty where segquant quantized nothing."""
    if run.config.is_float or isinstance(run.method, Peer):
        return {"backend": None, "backend_layers": {}}
    layers = read_json(run.folder("generate") / BACKENDS)
    return {"backend": find_backend(run.config.backend).name, "backend_layers": layers}


def engine_record(run: Run) -> dict[str, Any]:
    """The engine that made the pictures, what `auto` was, and what ran each layer."""
    found = run.config.run.settings()
    if found["name"] == AUTO:
        found |= {"engine": engine_of(run).name, "reason": why_reference(run) or ""}
    return {**found, **read_json(run.folder("generate") / ENGINE)} if run.has("generate") else found


def build_results(run: Run, folder: Path) -> dict[str, Any]:
    config = run.config
    prompts = list(run.dataset.evaluation)
    artifacts = {"images": "images", "reference": "reference" if run.has("generate") else "images"}
    return {
        "schema": SCHEMA,
        "name": config.name,
        "model": config.model.name,
        "model_fingerprint": run.fingerprint,
        "quantizer": config.quantizer_name,
        "precision": config.precision_name,
        "dataset": config.dataset.name,
        "subset": dict(run.dataset.record),
        "seed": config.seed,
        "n_images": len(prompts),
        "config": asdict(config),
        "config_hash": config_hash(config, run.fingerprint, run.dataset.record, file_contents(run)),
        "metrics": read_json(run.folder("evaluate") / "evaluation" / "metrics.json")["metrics"],
        "own_code": own_record(config),
        **backend_record(run),
        "run": engine_record(run),
        "speed": read_json(run.folder("speed") / SPEED) if run.has("speed") else None,
        **denoiser_errors(run),
        "components": component_records(run),
        "correction": correction_record(run),
        "stages": stage_records(run.finished, folder),
        "quantizing": quantizing_stages(run),
        "artifacts": {**artifacts, "evaluation": "evaluation", **copy_plan(run, folder)},
        "prompts": prompts,
        "versions": provenance.versions(),
        "device": provenance.device_record(run.device),
        "git": provenance.git_commit(),
    }


def copy_plan(run: Run, folder: Path) -> dict[str, str]:
    """The plan of `auto`, for edits; returns where, else empty."""
    if not run.config.quantizes_denoiser:
        return {}
    source = run.folder("quantize") / PLAN
    if not source.is_file():
        return {}
    shutil.copyfile(source, folder / PLAN)
    return {"plan": PLAN}


def write_results(run: Run, folder: Path) -> Path:
    """Put copies of pictures, evaluation and results.json into a run's folder; returns its path."""
    path = folder / "results.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    copy_tree(pictures_folder(run), folder / "images")
    copy_tree(run.folder("evaluate") / "evaluation", folder / "evaluation")
    if run.has("generate"):
        copy_tree(run.folder("reference") / "images", folder / "reference")
    write_json(path, build_results(run, folder))
    return path
