"""Sweeps: stages are shared, launchers run jobs in parallel, a failing job does not stop its siblings."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.pipelines.conftest import Command, Tiny

ROOT = Path(__file__).resolve().parents[2]


def _results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))]


def _computed(results: list[dict]) -> Counter:
    """How often each stage was computed, over all jobs of a sweep."""
    return Counter(
        (name, stage["key"]) for run in results for name, stage in run["stages"].items() if not stage["cached"]
    )


def test_sweep_shares_stages_and_ends_with_a_report(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    sweep = ["quantizer=none,rtn,segquant_a", "precision=w8a8_tensor,w4a8_channel"]
    arguments = ["-m", *tiny.overrides(tmp_path / "cache"), *sweep]
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    results = _results(outcome.folder)
    assert len(results) == 6 and len({run["config_hash"] for run in results}) == 5
    computed = _computed(results)
    assert set(computed.values()) == {1}
    assert Counter(name for name, _ in computed) == {
        "reference": 1, "calibrate": 1, "graph": 1, "quantize": 4, "generate": 4, "evaluate": 5,
    }  # fmt: skip
    for name in ("table.md", "table.csv", "table.tex", "grid.png", "report.html", "comparisons.md"):
        assert (outcome.folder / name).stat().st_size > 0
    table = (outcome.folder / "table.md").read_text()
    assert all(name in table for name in ("rtn", "segquant_a", "w4a8_channel", "psnr"))
    again = command(*arguments)
    assert again.code == 0 and not _computed(_results(again.folder))


def test_failing_job_does_not_stop_its_siblings(command: Command, tiny: Tiny, cache: Path) -> None:
    outcome = command("-m", *tiny.overrides(cache), "quantizer=smoothquant,rtn", "precision=w4a16,w8a8")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err and "smoothquant at w4a16" in outcome.sentence
    found = {(run["quantizer"], run["precision"]) for run in _results(outcome.folder)}
    assert found == {("smoothquant", "w8a8"), ("rtn", "w4a16"), ("rtn", "w8a8")}
    assert "rtn" in (outcome.folder / "table.md").read_text()


def test_a_fault_in_one_job_leaves_the_others_report(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segquant_bench.pipelines.results import watched
    from segquant_bench.pipelines.stages.run import Run

    compute_run = watched.compute_run

    def faulty(run: Run) -> None:
        if run.config.precision.name == "w8a8":
            raise ZeroDivisionError("a fault of the program")
        compute_run(run)

    monkeypatch.setattr(watched, "compute_run", faulty)
    arguments = ["-m", *tiny.overrides(cache), "quantizer=rtn", "precision=w8a8,w4a16"]
    with pytest.raises(ZeroDivisionError):
        command(*arguments)
    table = (cache.parent / "run" / "table.md").read_text()
    assert "w4a16" in table and "| w8a8 |" not in table


def test_unknown_option_in_a_sweep_runs_nothing(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    outcome = command("-m", *tiny.overrides(tmp_path / "cache"), "quantizer=rtn,segqant_g")
    assert outcome.code == 1 and "did you mean 'segquant_g'" in outcome.sentence
    assert not (tmp_path / "cache" / "stage").exists()


NO_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")
LAUNCHERS = {"joblib": "n_jobs=2", "submitit_local": "timeout_min=20", "ray": "cpus=1"}


@pytest.mark.parametrize(
    "launcher",
    [
        "joblib",
        pytest.param("submitit_local", marks=pytest.mark.slow),
        pytest.param("ray", marks=[pytest.mark.slow, NO_RAY]),
    ],
)
def test_parallel_launchers_share_stages(tiny: Tiny, tmp_path: Path, launcher: str) -> None:
    settings = [f"hydra.launcher.{LAUNCHERS[launcher]}"]
    finished = subprocess.run(
        [
            sys.executable, "-m", "segquant_bench.pipelines.main", "-m", *tiny.overrides(tmp_path / "cache"),
            "quantizer=rtn,segquant_a", f"hydra/launcher={launcher}", *settings,
            f"hydra.sweep.dir={tmp_path}/sweep",
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    results = _results(tmp_path / "sweep")
    computed = _computed(results)
    assert len(results) == 2 and set(computed.values()) == {1}
    assert Counter(name for name, _ in computed)["reference"] == 1
    assert not list((tmp_path / "cache" / "stage").glob("*.partial*"))
    assert (tmp_path / "sweep" / "report.html").is_file()


@pytest.mark.slow  # the small one: results/test_sweep_folders.py
def test_two_parallel_jobs_in_one_folder(tiny: Tiny, tmp_path: Path) -> None:
    finished = subprocess.run(
        [
            sys.executable, "-m", "segquant_bench.pipelines.main", "-m", *tiny.overrides(tmp_path / "cache"),
            "quantizer=none,rtn", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.subdir=a",
            f"hydra.sweep.dir={tmp_path}/sweep",
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert finished.returncode == 1 and "another job's folder already" in finished.stdout + finished.stderr
    assert len(_results(tmp_path / "sweep")) == len(list((tmp_path / "sweep").glob("refused_*/failure.json"))) == 1


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("stages.speed.rounds=3", "there is no key 'stages.speed.rounds'; known are against, repeats, warmup"),
        ("stages.speeed.repeats=3", "stages.speeed is no stage; did you mean 'speed'?"),
        ("metric.metrics=7", "metric.metrics takes a list; write"),
    ],
)
def test_what_every_job_would_be_refused_for_is_said_once_before_the_first(
    command: Command, tiny: Tiny, cache: Path, argument: str, told: str
) -> None:
    outcome = command("-m", *tiny.overrides(cache), "quantizer=rtn", "precision=w8a8,w4a8", argument)
    assert outcome.code == 1 and told in outcome.sentence
    assert outcome.err.count(told) == 1 and "job 1 of 2" not in outcome.err and not outcome.folder.exists()


def test_what_some_jobs_are_refused_for_leaves_the_others(command: Command, tiny: Tiny, cache: Path) -> None:
    outcome = command("-m", *tiny.overrides(cache), "quantizer=rtn", "precision=w8a8", "stages.speed.repeats=0,1")
    assert outcome.code == 1 and "stages.speed.repeats=0 is out of range" in outcome.sentence
    assert len(_results(outcome.folder)) == 1
