"""Engines in tables, and error against seconds and bytes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from segquant_bench.eval import load_result
from segquant_bench.eval.paper.pareto import pareto_csv, pareto_plot, pareto_points
from segquant_bench.eval.report.drawing.canvas import rendered
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.report.runs.groups import sort_runs
from segquant_bench.eval.report.runs.labels import labels
from segquant_bench.eval.results import RunResult
from tests.eval.sweep import run_record


def _run(
    folder: Path, quantizer: str, engine: dict, seconds: float | None, psnr: float | str, size: int | None
) -> RunResult:
    metric = {
        "name": "psnr", "value": psnr, "n": 2, "direction": "higher", "interval": None, "backend": "b",
        "against": "reference",
    }  # fmt: skip
    record = run_record(quantizer, "w8a8_tensor", 8.0, ["a", "b"], [metric])
    record |= {"config": {"run": engine}, "config_hash": f"{quantizer}{engine}"}
    if seconds is not None:
        ours = {"seconds_per_step": seconds, "speed": 2.0 / seconds, "forward_mb": 5.0, "weights_mb": 3.0}
        record["speed"] = {"measured": {"run": ours}, "file_bytes": size}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(record))
    return load_result(folder / "results.json")


def _runs(root: Path) -> list[RunResult]:
    return [
        _run(root / "0", "none", {"name": "reference"}, 2.0, 80.0, 40_000_000),
        _run(root / "1", "none", {"name": "ort"}, 1.5, 70.0, 40_000_000),
        _run(root / "2", "rtn", {"name": "reference"}, 4.0, 30.0, 10_000_000),
        _run(root / "3", "rtn", {"name": "openvino", "bfloat16": True}, 0.5, 29.0, 11_000_000),
        _run(root / "4", "rtn", {}, None, 30.5, 0),
    ]


def test_engines_have_names_and_columns(tmp_path: Path) -> None:
    runs = _runs(tmp_path)
    ordered, names = sort_runs(runs[:4]), labels(runs[:4])
    assert [run.engine for run in ordered] == ["reference", "ort", "reference", "openvino"], "engines behind reference"
    assert [names[id(run)] for run in ordered] == [
        "unquantized", "unquantized run=ort", "rtn run=reference", "rtn run=openvino bfloat16=True",
    ]  # fmt: skip
    found = {quantity.key: quantity.cell(runs[3]) for quantity in columns(runs)}
    values = {key: None if cell is None else cell.value for key, cell in found.items()}
    assert (values["step_s"], values["speed"], values["forward_mb"], values["file_mb"]) == (0.5, 4.0, 5.0, 11.0)
    assert not {"step_s", "speed"} & {quantity.key for quantity in columns(runs[4:])}, "older runs have no such column"


def test_front_is_what_no_run_beats_in_both(tmp_path: Path) -> None:
    points = pareto_points(_runs(tmp_path))
    best = {(point.cost, point.engine, point.label.startswith("unq")) for point in points if point.front}
    seconds, size = "seconds per step", "file, MB"
    assert best == {
        (seconds, "reference", True), (seconds, "ort", True), (seconds, "openvino", False),
        (size, "reference", True), (size, "reference", False),
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(pareto_csv(points))))
    assert len(rows) == 8 and {row["judge"] for row in rows} == {"psnr"}
    assert rendered(pareto_plot(points)).startswith(b"\x89PNG")
    assert pareto_points(_runs(tmp_path / "none")[4:] if (tmp_path / "none").mkdir() else []) == []


def test_engines_of_a_method_are_a_series_and_the_unquantized_model_is_none(tmp_path: Path) -> None:
    points = [point for point in pareto_points(_runs(tmp_path)) if point.cost == "seconds per step"]
    assert [point.series for point in points] == ["", "", "rtn, w8a8_tensor", "rtn, w8a8_tensor"]
    assert [point.run for point in points] == ["reference", "ort", "reference", "openvino bfloat16=True"]
    assert {point.axis for point in points} == {"psnr, dB (higher is better)"}


def test_runs_without_a_file_have_the_bytes_of_their_weights(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "0", "none", {"name": "compile"}, 1.0, "inf", None),
        _run(tmp_path / "1", "torchao_int8_dynamic", {"name": "compile"}, 1.0, 30.0, None),
        _run(tmp_path / "2", "segquant_a", {"name": "ort"}, 1.0, 31.0, 14_900_000),
    ]
    points = pareto_points(runs)
    sizes = {point.run + point.series: point.x for point in points if point.cost == "file, MB"}
    assert sizes == {
        "compile": 56.123456, "compiletorchao_int8_dynamic, w8a8_tensor": 14.5, "ortsegquant_a, w8a8_tensor": 14.9,
    }  # fmt: skip
    assert rendered(pareto_plot(points)).startswith(b"\x89PNG"), "an infinite psnr is not drawn"
