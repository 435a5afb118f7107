"""What results.json must hold: every key that runs write; `config` as far as reports read it. Other keys are free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from segquant_bench.eval.json_checks import (
    AMOUNT,
    ANYTHING,
    COUNT,
    FLAG,
    INSIDE,
    NAME,
    NUMBER,
    TEXT,
    VALUE,
    list_of,
    mapping_of,
    one_of,
    optional,
    record,
    shown,
)

SCHEMA = 1
DIRECTIONS = ("lower", "higher")
AGAINST = ("reference", "real", "prompt", None)

_INTERVAL = list_of(VALUE, 2, 2, "a list of two numbers")
METRIC = record(
    {
        "name": TEXT,
        "value": VALUE,
        "n": COUNT,
        "direction": one_of(DIRECTIONS),
        "interval": optional(_INTERVAL),
        "backend": TEXT,
        "against": one_of(AGAINST),
    },
    {"delta": VALUE, "delta_interval": _INTERVAL, "unit": TEXT},  # older results have no unit
)

_TEXTS = mapping_of(TEXT)
_COUNTS = mapping_of(COUNT)
_STAGE = record(
    {},
    {
        **dict.fromkeys(("seconds", "peak_memory_mb", "peak_device_memory_mb"), AMOUNT),
        **{"key": TEXT, "path": TEXT, "cached": FLAG},
    },
)
_ERRORS = mapping_of(AMOUNT)
_SUMMARY = record({}, dict.fromkeys(("mean", "median", "geometric_mean"), AMOUNT) | {"n": COUNT})
_COMPONENT = record(
    {"weight_bytes": COUNT},
    {"weight_bytes_float": COUNT, "output_error": AMOUNT, "layer_errors": _ERRORS, "layer_error": _SUMMARY},
)
_PIECES = list_of(ANYTHING)
_CUT = record(
    {},
    {
        "output": _PIECES,
        "input": _PIECES,
        "activation": TEXT,
        "input_activations": list_of(optional(TEXT)),
        "skip": FLAG,
    },
)
_SIGNS = record(
    {"activation": TEXT, "channels": COUNT, "rows": COUNT}
    | dict.fromkeys(("mostly_negative", "mostly_positive", "negative"), NUMBER),
    {},
)
_STATISTICS = record({}, {"segments": mapping_of(_CUT), "polarity": mapping_of(list_of(_SIGNS))})


def _name_or_path(value: Any, place: str) -> Iterator[str]:
    """A name, or a mapping with the path of the user's own function."""
    return (record({}, {"_target_": TEXT}) if isinstance(value, dict) else TEXT)(value, place)


_SECONDS = ("seconds_per_step", "seconds_per_step_minimum", "seconds_per_call")
_WAY = record(
    {},
    {
        **dict.fromkeys((*_SECONDS, "speed", "forward_mb", "weights_mb"), AMOUNT),
        **{"every": list_of(AMOUNT), "n": COUNT},
    },
)
_SPEED = record(
    {},
    {
        **{"measured": mapping_of(_WAY), "processor": TEXT, "step_error": AMOUNT},
        **dict.fromkeys(("file_bytes", "threads", "batch_size", "calls_per_step"), COUNT),
    },
)
_HASHES = ("evaluation_hash", "calibration_hash", "held_out_hash")
_SUBSET = record({}, {**dict.fromkeys(("name", "draw", *_HASHES), TEXT), **dict.fromkeys(("n", "of", "seed"), COUNT)})
_OWN_CODE = mapping_of(record({}, {"path": TEXT, "code": TEXT}))
_ENGINE = record(
    {},
    {
        **dict.fromkeys(("name", "engine", "reason", "fallback", "attention", "rest", "remark"), TEXT),
        **dict.fromkeys(("every_cpu", "bfloat16"), FLAG),
        **dict.fromkeys(("threads", "file_bytes", "graph_breaks"), COUNT),
        **{"layers": _TEXTS, "reasons": _TEXTS, "products": _COUNTS, "compiled": _COUNTS},
    },
)
_CORRECTION = record(
    {},
    {
        **dict.fromkeys(("name", "method", "trajectory", "scheduler", "noise"), TEXT),
        **dict.fromkeys(("prediction_error", "prediction_error_corrected"), list_of(AMOUNT)),
        **{"prompts": COUNT, "guidance_weights": list_of(NUMBER)},
    },
)
_DEVICE = record(
    {},
    {
        **dict.fromkeys(("name", "type", "machine", "system", "cpu_capability", "accelerator"), TEXT),
        **dict.fromkeys(("cpus", "threads"), COUNT),
    },
)
_CONFIG = record(
    {},
    {
        "model": record({}, {}),
        "run": record({}, {"name": TEXT}),
        "quantize": list_of(TEXT),
        "quantizer": record({}, {"cuts": TEXT}),
        "calibration": record({}, {"prompts": COUNT}),
        "correction": record({}, {"method": _name_or_path}),
    },
)
_LAYER_STEPS = record({"steps": list_of(COUNT), "layers": mapping_of(list_of(optional(AMOUNT)))}, {})
_RUN = record(
    {
        "name": TEXT,
        "model": TEXT,
        "quantizer": NAME,
        "precision": optional(TEXT),
        "dataset": TEXT,
        "seed": COUNT,
        "n_images": COUNT,
        "metrics": list_of(METRIC),
        "prompts": list_of(TEXT, 1, what="a list of at least one text"),
    },
    {
        "config_hash": TEXT,
        "model_fingerprint": TEXT,
        "subset": _SUBSET,
        "own_code": _OWN_CODE,
        "backend": TEXT,
        "run": _ENGINE,
        "correction": _CORRECTION,
        "layer_error": _SUMMARY,
        "layer_errors": _ERRORS,
        "output_error": AMOUNT,
        "per_row_output_errors": list_of(AMOUNT),
        "per_row_steps": list_of(COUNT),
        "per_row_prompts": list_of(COUNT),
        "per_row_energies": list_of(AMOUNT),
        "layer_step_errors": _LAYER_STEPS,
        "stages": mapping_of(_STAGE),
        "quantizing": list_of(TEXT),
        "artifacts": mapping_of(INSIDE),
        "weight_bytes": COUNT,
        "weight_bytes_float": COUNT,
        "components": mapping_of(_COMPONENT),
        "statistics": _STATISTICS,
        "speed": _SPEED,
        "backend_layers": _COUNTS,
        "versions": _TEXTS,
        "device": _DEVICE,
        "git": TEXT,
        "config": _CONFIG,
    },
)


def check_results(raw: Any, place: str) -> Iterator[str]:
    """The check of a whole file; of another schema, nothing else is looked at."""
    if not isinstance(raw, dict) or raw.get("schema") is not SCHEMA:
        found = shown(raw.get("schema")) if isinstance(raw, dict) else type(raw).__name__
        yield f"has schema {found}, this version reads schema {SCHEMA}"
        return
    yield from _RUN(raw, place)
    errors = raw.get("per_row_output_errors") or ()
    for key in ("per_row_steps", "per_row_prompts", "per_row_energies"):
        values = raw.get(key) or ()
        if values and len(values) != len(errors):
            yield f"holds {len(values)} {key} for {len(errors)} per_row_output_errors"
    by_step = raw.get("layer_step_errors") or {"steps": (), "layers": {}}
    for layer, values in by_step["layers"].items():
        if len(values) != len(by_step["steps"]):
            yield f"holds {len(values)} layer_step_errors of {layer} for {len(by_step['steps'])} steps"
