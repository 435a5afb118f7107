"""Seconds and memory of quantizing: of every stage that is the method's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segquant_bench.eval import load_result
from segquant_bench.eval.report.main_table.columns import columns
from tests.eval.sweep import run_record


@pytest.mark.parametrize(
    ("quantizing", "seconds", "peak"),
    [(None, 11.0, 1234.5), (["quantize"], 11.0, 1234.5), (["graph", "quantize"], 13.5, 2000.0)],
)
def test_a_graph_counts_where_the_method_cuts_by_it(
    tmp_path: Path, quantizing: list[str] | None, seconds: float, peak: float
) -> None:
    record = run_record("segquant_g", "w8a8_tensor", 8.0, ["a", "b"], [])
    record["stages"]["graph"] = {"seconds": 2.5, "peak_memory_mb": 2000.0, "cached": True, "key": "g", "path": "z"}
    if quantizing is not None:
        record["quantizing"] = quantizing
    (tmp_path / "results.json").write_text(json.dumps(record))
    run = load_result(tmp_path / "results.json")
    cells = {quantity.key: quantity.cell(run) for quantity in columns([run])}
    found = [cells["quantize_s"], cells["peak_mb"]]
    assert [cell.value for cell in found if cell is not None] == [seconds, peak]
