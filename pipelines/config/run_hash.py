from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.config.auto_engine import engine_name
from segquant_bench.pipelines.config.own_paths import own_record
from segquant_bench.pipelines.config.precision import precision_record, shipped_precisions
from segquant_bench.pipelines.config.schema import REFERENCE, RunConfig

_YOUNGER: dict[str, Any] = {
    "deploy": "none", "negative": None, "columns": None, "smoothing": None, "alpha_rows": "held_out",
    "alpha_none": True, "rank_limit": 32, "rank_fraction": 1 / 32, "gram_shrinkage": 0.5, "rotation_group": 256,
    "clip_norm": 2.4, "budget": None,
}  # fmt: skip
"""Settings of a quantizer that the first results did not have, and what leaves them as they were."""

_IDLE_PERCENTILE = 99.9
"""The setting's value in earlier results, where nothing uses it."""


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
    for key in (
        "name",
        "logger",
        "cache",
        "report",
        "generate",
        "retries",
        "objective",
        "prune_above",
        "polarity",
        "speed",
    ):
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
    _drop_younger(raw["quantizer"], _has_static_inputs(run))
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


def _drop_younger(quantizer: dict[str, Any], static: bool) -> None:
    """Take out what leaves earlier results as they were, so that their hashes stay."""
    for key, default in _YOUNGER.items():
        if quantizer.get(key, default) == default:
            quantizer.pop(key, None)
    overrides = quantizer.get("overrides") or {}
    changed = (
        {key for values in overrides.values() for key in values or ()} if isinstance(overrides, Mapping) else set()
    )
    if quantizer.get("ranges") != "percentile" and "ranges" not in changed and "percentile" in quantizer:
        quantizer["percentile"] = _IDLE_PERCENTILE
    other = bool(changed & {"seglinear", "rotate", "ranges", "alpha", "optimizer", "precision", "headroom"})
    idle = not static and "precision" not in changed
    if idle or (quantizer.get("headroom") == 0 and not (other or _had_headroom(quantizer))):
        quantizer.pop("headroom", None)


def _had_headroom(quantizer: Mapping[str, Any]) -> bool:
    """Whether static scales had headroom in earlier results, where nobody could say so and the rule was another."""
    ranges, smooths = quantizer.get("ranges"), not str(quantizer.get("_target_")).endswith(".awq")
    if ranges == "percentile" or quantizer.get("rotate"):
        return ranges != "percentile"
    searched = isinstance(quantizer.get("alpha"), str)
    return ranges != "mse" and smooths and bool(quantizer.get("seglinear") or searched)


def _has_static_inputs(run: RunConfig) -> bool:
    """Whether the precision has, or may have (a function of one's own)."""
    precision = run.precision
    if precision._target_ is not None:
        return True
    if not precision.has_fields:
        return precision.name not in shipped_precisions() or _static(shipped_precisions()[precision.name])
    return _static(precision.fields())


def _static(fields: Mapping[str, Any]) -> bool:
    inputs = fields.get("input")
    return inputs is not None and not inputs["dynamic"]
