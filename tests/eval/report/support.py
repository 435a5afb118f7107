"""Runs made by hand, for reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segquant_bench.eval.results import EvalResult, Interval, RunResult


def run(job: int, quantizer: str, **values: Any) -> RunResult:
    given: dict[str, Any] = {
        "path": Path(f"/nowhere/{job}/results.json"), "name": quantizer, "model": "m", "precision": "w8a8",
        "dataset": "d", "seed": 0, "n_images": 2, "config_hash": str(job), "metrics": (), "layer_errors": {},
        "per_row_output_errors": (), "output_error": None, "stages": {}, "artifacts": {}, "prompts": ("a", "b"),
        "weight_bytes": 1000, "weight_bytes_float": 4000, **values,
    }  # fmt: skip
    return RunResult(quantizer=quantizer, **given)


def psnr(value: float, interval: Interval | None = None, **values: Any) -> EvalResult:
    return EvalResult("psnr", value, 2, "higher", interval, "x", "reference", **values)


def seeded(job: int, quantizer: str, calibration: int, **values: Any) -> RunResult:
    config = {"calibration": {"seed": calibration}, **values.pop("config", {})}
    return run(job, quantizer, config=config, **values)


def write(folder: Path, made: RunResult, per_image: Mapping[str, Sequence[float]] | None = None) -> Path:
    """The run's results.json, with values per picture where there are any."""
    folder.mkdir(parents=True)
    record: dict[str, Any] = {
        "schema": 1, "metrics": [each.to_dict() for each in made.metrics], "prompts": list(made.prompts),
        "artifacts": {"evaluation": "."},
    }  # fmt: skip
    for key in ("name", "model", "quantizer", "precision", "dataset", "seed", "n_images", "config_hash", "layer_errors",
                "output_error", "weight_bytes", "weight_bytes_float", "config"):  # fmt: skip
        record[key] = getattr(made, key)
    record["per_row_output_errors"] = list(made.per_row_output_errors)
    (folder / "results.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    (folder / "per_image.json").write_text(json.dumps({"metrics": {k: list(v) for k, v in (per_image or {}).items()}}))
    return folder / "results.json"
