from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.config.auto_engine import engine_name
from segquant_bench.pipelines.config.own_paths import own_record
from segquant_bench.pipelines.config.precision import precision_record
from segquant_bench.pipelines.config.schema import REFERENCE, RunConfig

_YOUNGER: dict[str, Any] = {"deploy": "none", "negative": None, "columns": None, "smoothing": None, "budget": None}
"""Settings of a quantizer that the first results did not have, and what leaves them as they were."""


def config_hash(
    run: RunConfig, model_fingerprint: str, subset: Mapping[str, Any], contents: Mapping[str, str] | None = None
) -> str:
    """A short name of all that the numbers depend on, files by content; no logger, paths, cache or device.

    The unquantized model has one hash at every `precision`.

    Args:
        subset: the data set's record, with hashes of its prompts.
        contents: hashes of other files by key, see `stages.shared.contents`.
    """
    raw = asdict(run)
    for key in ("name", "logger", "cache", "report", "polarity", "speed"):
        del raw[key]
    for key in ("path", "repo", "revision", "variant", "device"):
        del raw["model"][key]
    raw["model"]["parts"] = {name: part.kind for name, part in run.model.parts.items()}
    raw["model"]["fingerprint"] = model_fingerprint
    for key in ("_target_", "arguments"):  # ways in for one's own, absent from runs without
        if not raw["dataset"][key]:
            del raw["dataset"][key]
    raw["precision"] = precision_record(run.precision)
    for section, keys in (
        (raw["dataset"], ("root", "table", "archive", "evaluation_prompts", "calibration_prompts", "real")),
        (raw["metric"]["backends"], ("inception", "clip_path")),
    ):
        for key in keys:
            section[key] = Path(section[key]).name if section[key] else None
    plan = run.quantizer.get("path")
    if plan and Path(plan).is_file():  # an edited plan is another configuration, a moved one is not
        raw["quantizer"]["path"] = hashlib.sha256(Path(plan).read_bytes()).hexdigest()
    for key, default in _YOUNGER.items():
        if raw["quantizer"].get(key, default) == default:
            raw["quantizer"].pop(key, None)
    splits = ("evaluation",) if run.is_float else ("evaluation", "calibration", "held_out")
    raw["subset"] = [subset.get(f"{split}_hash") for split in splits]
    if run.is_float:
        raw["quantizer"], raw["precision"], raw["calibration"] = "none", run.model.dtype, None
    if not run.is_corrected:
        raw["correction"] = None
    if raw["calibration"] is not None:  # under its older name, so that hashes of earlier results stay
        raw["calibration"]["sampler"] = raw["calibration"].pop("timesteps")
    raw["stages"].pop("speed", None)
    if not raw["stages"]:
        del raw["stages"]
    engine = engine_name(run)
    if run.is_float or run.backend == REFERENCE or engine != REFERENCE:
        del raw["backend"]
    raw["run"] = run.run.settings()
    if engine == REFERENCE:  # older than engines
        del raw["run"]
    if contents:
        raw["contents"] = dict(contents)
    if own := own_record(run):
        raw["own_code"] = own
    del raw["quantize"], raw["components"]
    if run.other_components:  # "text_encoders": likewise
        raw["text_encoders"] = {name: run.components.get(name, {}) for name in run.other_components}
        if not run.quantizes_denoiser:
            raw["denoiser"] = None
    text = json.dumps(raw, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
