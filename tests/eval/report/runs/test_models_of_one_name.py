"""Models of one name and different files never share rows, comparisons or pictures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from segquant_bench.eval import RunResult, load_result, load_results
from segquant_bench.eval.render import write_report
from segquant_bench.eval.report.comparing.comparisons import compare_runs
from segquant_bench.eval.report.drawing.grid import grid_groups
from segquant_bench.eval.report.runs.groups import sort_runs
from tests.eval.sweep import run_record

FILES = {"a": "1f2e3d4c5b6a7988", "b": "1f2e3d99aa00bb11", "old": None}


def _write(root: Path, *places: str) -> Path:
    for place in places:
        for quantizer in ("none", "rtn", "segquant_g"):
            record = run_record(quantizer, "w8a8", 8.0, ["one", "two"], [])
            record |= {"config_hash": f"{quantizer}{place}", "config": {"model": {"name": "emoji_sd3", "path": place}}}
            record["model_fingerprint"] = FILES[place]
            folder = root / place / quantizer
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(record))
    return root


@pytest.fixture
def runs(tmp_path: Path) -> list[RunResult]:
    return load_results([_write(tmp_path, "a", "b")])


def test_names_tell_files_apart(runs: list[RunResult], tmp_path: Path) -> None:
    assert {run.model for run in runs} == {"emoji_sd3 (1f2e3d4)", "emoji_sd3 (1f2e3d9)"}
    assert {run.model for run in load_results([tmp_path / "a"])} == {"emoji_sd3"}
    _write(tmp_path, "old")
    assert {run.model for run in load_results([tmp_path / "a", tmp_path / "old"])} == {
        "emoji_sd3 (1f2e3d)", "emoji_sd3 (files not recorded)",
    }  # fmt: skip
    assert {run.model for run in load_results([tmp_path / "old"])} == {"emoji_sd3"}


def test_each_has_its_own_rows_comparisons_and_grid(runs: list[RunResult], tmp_path: Path) -> None:
    comparisons, refused = compare_runs(runs)
    assert {(c.ours, c.theirs, c.where) for c in comparisons} == {
        ("segquant_g", "rtn", "emoji_sd3 (1f2e3d4)"), ("segquant_g", "rtn", "emoji_sd3 (1f2e3d9)"),
    }  # fmt: skip
    assert not refused and sum(run.is_float for run in sort_runs(runs)) == 2
    assert sorted(len(members) for members in grid_groups(runs).values()) == [3, 3]
    written = write_report([tmp_path], grid=False)
    rows = list(csv.DictReader(io.StringIO(written["table.csv"].read_text())))
    assert [row["model"] for row in rows] == ["emoji_sd3 (1f2e3d4)"] * 3 + ["emoji_sd3 (1f2e3d9)"] * 3
    assert "emoji_sd3 (1f2e3d4) is a, emoji_sd3 (1f2e3d9) is b" in written["table.md"].read_text()


def test_runs_read_one_by_one_are_apart_too(tmp_path: Path) -> None:
    _write(tmp_path, "a", "b")
    one_by_one = [load_result(path) for path in sorted(tmp_path.rglob("results.json"))]
    assert len(sort_runs(one_by_one)) == 6 and len(compare_runs(one_by_one)[0]) == 4
