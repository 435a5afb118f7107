"""Searches by Optuna: what is drawn, goes on after a kill, is pruned, and ends in the report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from segquant_bench.eval.jobs import JOB, this_process
from segquant_bench.eval.status import read_status
from segquant_bench.eval.study import FILE, load_searches
from segquant_bench.pipelines.config.objective import KNOWN, check_objective, directions
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.conftest import Command, Tiny

OBJECTIVES = {"output_error": "minimize", "weight_bytes": "minimize"}


def _optuna() -> Any:
    return pytest.importorskip("optuna", reason="Optuna is not installed (extra search)")


def _space(*overrides: str) -> dict[str, Any]:
    from segquant_bench.pipelines.config.search import distribution

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.get_key_element(): distribution(override) for override in parsed}


SPACE = ("quantizer=rtn,mse", "quantizer.alpha=interval(0.0,1.0)")


def _study(
    folder: Path, objectives: dict[str, str] | None = None, space: tuple[str, ...] = SPACE, **settings: Any
) -> Any:
    from segquant_bench.pipelines.sweeps.study import Study

    return Study(folder, objectives or {"output_error": "minimize"}, _space(*space), **settings)


def test_distributions() -> None:
    d = _optuna().distributions
    found = _space(
        "quantizer=rtn,gptq", "precision=choice(w8a8,w4a8)", "a.rank=range(8,65,8)", "a.alpha=interval(0.2,0.9)",
        "a.n=int(interval(1,9))", "a.x=tag(log,interval(0.001,1.0))", "seglinear=true,false",
    )  # fmt: skip
    assert found == {
        "quantizer": d.CategoricalDistribution(["rtn", "gptq"]),
        "precision": d.CategoricalDistribution(["w8a8", "w4a8"]), "a.rank": d.IntDistribution(8, 64, step=8),
        "a.alpha": d.FloatDistribution(0.2, 0.9), "a.n": d.IntDistribution(1, 9),
        "a.x": d.FloatDistribution(0.001, 1.0, log=True), "seglinear": d.CategoricalDistribution(["True", "False"]),
    }  # fmt: skip


@pytest.mark.parametrize(("override", "words"), [
    ("a=interval(1,1)", "holds nothing"), ("a=tag(log,interval(0,1))", "only above 0"),
    ("a=tag(cheap,interval(0,1))", "takes no tag but log"),
])  # fmt: skip
def test_intervals_that_are_none(override: str, words: str) -> None:
    _optuna()
    with pytest.raises(PipelineError, match=words):
        _space(override)


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    _optuna()
    study = _study(tmp_path)
    drawn = []
    for _ in range(4):
        number, values = study.ask()
        drawn.append(values)
        if number < 3:  # the last is left, as by a kill
            study.tell(number, [values["quantizer.alpha"]], 0.1, f"{number}_rtn")
    again = _study(tmp_path)
    assert again.finished == 3
    number, values = again.ask()
    assert values == drawn[3] and number == 4
    again.tell(number, [0.5], 0.1, "4_rtn")
    assert again.finished == 4
    (search,) = load_searches([tmp_path])
    states = {trial.number: trial.state for trial in search.trials}
    assert states == {0: "complete", 1: "complete", 2: "complete", 3: "fail", 4: "complete"}


def test_a_job_that_ended_before_the_kill_is_not_run_again(tmp_path: Path) -> None:
    _optuna()
    study = _study(tmp_path)
    (one, _), (other, _) = asked = [study.ask() for _ in range(2)]
    for number, _ in asked:
        study.place(number, f"{number}_rtn")
        (tmp_path / f"{number}_rtn").mkdir()
    record = {**this_process(), "sweep": "s", "began": 1.0, "ended": 2.0, "tries": 1, "outcome": "done", "value": 0.25}
    (tmp_path / f"{one}_rtn" / JOB).write_text(json.dumps(record))
    (tmp_path / f"{one}_rtn" / "results.json").write_text('{"layer_error": {"geometric_mean": 0.5}}')
    (tmp_path / f"{other}_rtn" / JOB).write_text(json.dumps({**record, "outcome": None, "ended": None, "value": None}))
    again = _study(tmp_path)  # behind a kill
    assert again.finished == 1
    (search,) = load_searches([tmp_path])
    (told,) = [trial for trial in search.trials if trial.number == one]
    assert (told.state, told.values, told.layer_error, told.folder) == ("complete", (0.25,), 0.5, f"{one}_rtn")
    assert again.ask()[1] == asked[1][1]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_no_point_of_a_finite_space_is_drawn_twice(tmp_path: Path, sampler: str) -> None:
    _optuna()
    space = ("quantizer=rtn,mse,gptq", "quantizer.rank=range(8,33,8)")
    drawn = []
    for _ in range(4):  # gone on with
        study = _study(tmp_path, space=space, sampler=sampler)
        assert study.size == 12 and study.finished == len(drawn)
        for number, values in [study.ask() for _ in range(3)]:  # side by side
            drawn.append(tuple(values.values()))
            study.tell(number, [1.0], 0.1, f"{number}_{values['quantizer']}")
    assert len(set(drawn)) == len(drawn) == 12
    (search,) = load_searches([tmp_path])
    assert sorted(tuple(trial.params.values()) for trial in search.trials) == sorted(drawn)
    number, values = study.ask()  # used up: what the sampler draws
    assert tuple(values.values()) in drawn


def test_a_space_with_an_interval_has_no_end(tmp_path: Path) -> None:
    _optuna()
    assert _study(tmp_path).size == float("inf")


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    _optuna()
    _study(tmp_path)
    with pytest.raises(PipelineError, match=r"study\.log is a search with other objectives; go on .*hydra\.sweep\.dir"):
        _study(tmp_path, OBJECTIVES)


@pytest.mark.parametrize(("settings", "words"), [
    ({"sampler": "tpi"}, "did you mean 'tpe'"), ({"prune": 0.5}, "hydra.sweeper.prune=0.5 is out of range"),
    ({"prune": float("nan")}, "hydra.sweeper.prune=nan is out of range"),
    ({"warm_up": 0}, "hydra.sweeper.warm_up=0 is out of range"),
])  # fmt: skip
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    _optuna()
    with pytest.raises(PipelineError, match=words):
        _study(tmp_path, **settings)


def test_pruning_is_by_the_median_of_finished_trials(tmp_path: Path) -> None:
    _optuna()
    study = _study(tmp_path, prune=2.0, warm_up=3)
    for error, threshold in ((0.1, None), (0.3, None), (0.2, 0.4), (0.9, 0.5)):
        number, _ = study.ask()
        study.tell_pruned(number, error, "x") if error == 0.9 else study.tell(number, [error], error, "x")
        assert study.prune_above() == (None if threshold is None else pytest.approx(threshold))
    assert _study(tmp_path, prune=None).prune_above() is None
    several = tmp_path / "several"
    several.mkdir()
    study = _study(several, OBJECTIVES)
    number, _ = study.ask()
    study.tell_pruned(number, 0.9, "x")
    assert load_searches([several])[0].trials[0].state == "pruned"


def test_the_sampler_learns(tmp_path: Path) -> None:
    """Of a function with one valley, later trials are nearer to it than random ones are on average."""
    _optuna()
    study, values = _study(tmp_path, seed=1), []
    for _ in range(40):
        number, drawn = study.ask()
        values.append(abs(drawn["quantizer.alpha"] - 0.3) + (drawn["quantizer"] == "rtn"))
        study.tell(number, [values[-1]], None, "x")
    at_random = 1 / 2 + (0.3**2 + 0.7**2) / 2
    assert sum(values[20:]) / 20 < 0.7 * at_random


def test_objectives_are_checked() -> None:
    assert directions(["output_error", "psnr", "fid_ref"]) == {
        "output_error": "minimize", "psnr": "maximize", "fid_ref": "minimize",
    }  # fmt: skip
    check_objective(["psnr", *KNOWN], ["psnr"])
    for names, words in ((["psnr"], "neither known nor in metric.metrics"), ([], "at least one"), (["a", "a"], "once")):
        with pytest.raises(PipelineError, match=words):
            check_objective(names, ["ssim"])


def test_refused_before_the_work(command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = [*tiny.overrides(cache), "hydra/sweeper=optuna"]
    for arguments, words in (
        (["-m", *base], "has nothing to search"), (["-m", *base, "quantizer=rtn,mse", "objective=[fid_gt]"], "fid_gt"),
        (["-m", *base, "quantizer=rtn,mse", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 is out of range"),
        (["-m", *tiny.overrides(cache), "quantizer.alpha=interval(0,1)"], "hydra/sweeper=optuna"),
    ):  # fmt: skip
        if words != "hydra/sweeper=optuna":
            _optuna()
        outcome = command(*arguments)
        assert outcome.code == 1 and words in outcome.sentence and not (outcome.folder / "0_rtn_w8a8").exists()
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = command("-m", *base, "quantizer=rtn,mse")
    assert outcome.code == 1 and "pip install '.[search]' in a clone of segquant" in outcome.sentence


def test_a_search_of_two_objectives(command: Command, tiny: Tiny, cache: Path) -> None:
    """Begun, gone on with, pruned: rtn at 4 bits errs more than 1.5 times as much as at 8."""
    _optuna()
    arguments = ["-m", *tiny.overrides(cache), "hydra/sweeper=optuna", "quantizer=rtn", "dataset.size=2", "retries=0"]
    arguments += ["precision=w8a8,w4a8_channel", "objective=[output_error,weight_bytes]", "hydra.sweeper.warm_up=1"]
    arguments += ["hydra.sweeper.prune=1.5", "hydra.sweeper.seed=10", "metric.metrics=[psnr]"]
    outcome = command(*arguments, "hydra.sweeper.n_trials=1")
    assert outcome.code == 0, outcome.err
    outcome = command(*arguments, "hydra.sweeper.n_trials=3")
    assert outcome.code == 0, outcome.err
    (search,) = load_searches([outcome.folder])
    assert len(search.trials) == 2
    for trial in search.trials:
        folder = outcome.folder / trial.folder
        assert folder.is_dir() and trial.folder.startswith(f"{trial.number}_rtn_")
        if trial.state == "pruned":
            assert trial.params == {"precision": "w4a8_channel"} and not (folder / "images").exists()
        else:
            raw = json.loads((folder / "results.json").read_text())
            assert trial.values == (raw["output_error"], raw["weight_bytes"])
    assert [trial.state for trial in search.trials] == ["complete", "pruned"]
    status = read_status(outcome.folder)
    assert status.counts["damaged"] == status.counts["failed"] == 0
    assert status.counts["done"] + status.counts["pruned"] == 1  # of the second command, which had one trial left
    assert "what no other trial beats" in (outcome.folder / "table.md").read_text()
    assert (outcome.folder / FILE).is_file() and (outcome.folder / "study.csv").is_file()
    written = (outcome.folder / "report.html").stat().st_mtime_ns
    outcome = command(*arguments, "objective=[fid_gt]")  # refused: the report of what was there is not made again
    assert outcome.code == 1 and "fid_gt" in outcome.sentence
    assert (outcome.folder / "report.html").stat().st_mtime_ns == written
