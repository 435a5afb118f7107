"""Results of older versions stay readable."""

from __future__ import annotations

import json
from pathlib import Path

from segquant_bench.eval import load_result
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.report.runs.labels import settings
from tests.eval.sweep import run_record


def test_older_runs_are_read_under_the_names_of_today(tmp_path: Path) -> None:
    record = run_record("rtn", "w4a8", 8.0, ["egg"], [])
    record["stages"] = {
        name: {"seconds": seconds, "peak_memory_mb": 10.0} for name, seconds in (("encoders", 2.0), ("quantize", 1.0))
    }
    record["config"] = {
        "encoders": {"text_encoder": {"seglinear": False}},
        "calibration": {"name": "loss", "sampler": "loss"},
    }
    (tmp_path / "results.json").write_text(json.dumps(record))
    run = load_result(tmp_path / "results.json")
    assert run.stages.keys() == {"components", "quantize"}
    assert settings(run)["components.text_encoder.seglinear"] is False
    assert settings(run)["calibration.timesteps"] == "loss"
    assert {column.key: column.cell(run) for column in columns([run])}["quantize_s"].value == 3.0
