"""Methods of the user's own packages in tables: named by their own names, told apart where those are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segquant_bench.eval.report.comparing.comparisons import compare_runs
from segquant_bench.eval.report.runs.groups import home, sort_runs
from segquant_bench.eval.report.runs.labels import labels
from segquant_bench.eval.results import RunResult, load_result
from tests.eval.sweep import run_record

PRECISION = {"name": "w4g32", "weight": {"dtype": "int4", "group_size": 32}}


def _run(folder: Path, number: int, quantizer: dict[str, Any] | None, **config: Any) -> RunResult:
    name = "mine" if quantizer is None else str(quantizer["_target_"]).rpartition(".")[2]
    raw = run_record(name, "w8a8", 1.0, ["a", "b"], [])
    raw["config"] = {**({} if quantizer is None else {"quantizer": quantizer}), **config}
    raw["name"] = f"run{number}"
    (folder / str(number)).mkdir()
    (folder / str(number) / "results.json").write_text(json.dumps(raw))
    return load_result(folder / str(number) / "results.json")


def _labels(folder: Path, *configs: dict[str, Any]) -> list[str]:
    runs = [_run(folder, number, **config) for number, config in enumerate(configs)]
    found = labels(runs)
    return [found[id(run)] for run in runs]


def _target(path: str, **values: Any) -> dict[str, Any]:
    return {"quantizer": {"_target_": path, **values}}


def test_one_own_method_goes_by_its_name(tmp_path: Path) -> None:
    assert _labels(tmp_path, _target("lab.methods.mine"), _target("segquant.presets.rtn")) == ["mine", "rtn"]


def test_one_name_from_two_packages(tmp_path: Path) -> None:
    found = _labels(tmp_path, _target("lab.methods.mine"), _target("other.mine"), _target("lab.methods.yours"))
    assert found == ["mine (lab.methods)", "mine (other)", "yours"]


def test_a_name_that_is_ours_too(tmp_path: Path) -> None:
    assert _labels(tmp_path, _target("lab.rtn"), _target("segquant.presets.rtn")) == ["rtn (lab)", "rtn"]


def test_settings_are_told_beside_the_package(tmp_path: Path) -> None:
    found = _labels(tmp_path, _target("lab.mine", steps=1), _target("lab.mine", steps=2), _target("other.mine"))
    assert found == ["mine (lab) steps=1", "mine (lab) steps=2", "mine (other) steps=none"]


def test_the_backend_is_told_where_runs_differ(tmp_path: Path) -> None:
    mine = _target("lab.mine")
    found = _labels(tmp_path, mine, {**mine, "backend": "fast"}, {**mine, "backend": {"_target_": "lab.Fast"}})
    assert found == ["mine backend=reference", "mine backend=fast", "mine backend=lab.Fast"]
    (tmp_path / "two").mkdir()
    assert _labels(tmp_path / "two", {**mine, "backend": "reference"}, _target("segquant.presets.rtn")) == [
        "mine",
        "rtn",
    ]


def test_precisions_of_one_name_and_other_fields(tmp_path: Path) -> None:
    other = {**PRECISION, "weight": {"dtype": "int4", "group_size": 64}}
    found = _labels(
        tmp_path, _target("lab.mine") | {"precision": PRECISION}, _target("lab.mine") | {"precision": other}
    )
    assert found == ["mine weight.group_size=32", "mine weight.group_size=64"]


def test_runs_that_do_not_say_where_their_method_is_from(tmp_path: Path) -> None:
    run = _run(tmp_path, 0, None)
    assert home(run) == "" and labels([run])[id(run)] == "mine"


def test_an_own_method_stands_last_and_is_compared_with_all_others(tmp_path: Path) -> None:
    paths = ["lab.mine", "segquant.presets.segquant_g", "segquant.presets.rtn"]
    runs = [_run(tmp_path, number, **_target(path)) for number, path in enumerate(paths)]
    assert [run.quantizer for run in sort_runs(runs)] == ["rtn", "segquant_g", "mine"]
    found, _ = compare_runs(runs)
    pairs = {(each.ours, each.theirs) for each in found}
    assert pairs == {("segquant_g", "rtn"), ("mine", "rtn"), ("mine", "segquant_g")}
