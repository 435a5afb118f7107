"""A sweep has a line over all its jobs, and a run of its own in the logger."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from segquant_bench.eval.jobs import JOB, Listed, this_process
from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.results.sweep_asked import Asked, about_sweep, sweep_id
from segquant_bench.pipelines.results.sweep_line import pace_of
from segquant_bench.pipelines.results.sweep_log import SweepRun
from segquant_bench.pipelines.runtime.interrupt import Ended
from segquant_bench.pipelines.stages import benchmark
from segquant_bench.pipelines.sweeps.record import SweepRecord
from tests.pipelines.conftest import Command, Tiny
from tests.pipelines.loggers.events import scalars_of, texts_of
from tests.pipelines.loggers.offline import Offline, offline_files, read_offline


def test_jobs_and_the_whole_are_told(command: Command, tiny: Tiny, cache: Path) -> None:
    outcome = command("-m", *tiny.overrides(cache), "quantizer=none,smoothquant", "precision=w4a16", "retries=0")
    assert outcome.code == 1
    logs = [path.read_text() for path in sorted(outcome.folder.glob("*/segquant.log"))]
    assert "] job 1 of 2, 0 done\n" in logs[0] and "job 1 of 2: the cache has no stage like evaluate" in logs[0]
    assert "] job 2 of 2, 1 done, about " in logs[1]


def _rows(found: Offline) -> list[dict[str, Any]]:
    return [{key[5:]: value for key, value in row.items() if key.startswith("jobs/")} for row in found.rows
            if "jobs/done" in row]  # fmt: skip


def _own(folder: Path) -> Offline:
    """The sweep's run, not those of its jobs."""
    return read_offline(folder / "wandb")


def test_a_sweep_s_own_run_is_there_before_its_jobs(
    command: Command, tiny: Tiny, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs, of which one fails; seen from within the first one's work, and at the end."""
    monkeypatch.setattr("segquant_bench.pipelines.results.sweep_log.SECONDS", 0.05)
    compute, seen = benchmark.compute_run, list[Offline]()

    def watched(run: Any) -> Any:
        if not seen:
            is_there = lambda found: bool(_rows(found)) and _rows(found)[-1]["running"] == 1  # noqa: E731
            seen.append(read_offline(folder / "wandb", is_there))
        if run.config.quantizer_name == "rtn":
            raise PipelineError("the moon is full")
        return compute(run)

    monkeypatch.setattr("segquant_bench.pipelines.results.watched.compute_run", watched)
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.5")  # what is logged reaches the disk with these
    monkeypatch.setenv("WANDB_TAGS", "mine")
    folder = tmp_path / "run"
    arguments = ["-m", *tiny.overrides(cache), "quantizer=none,rtn", "logger=wandb", "logger.project=p", "retries=0"]
    outcome = command(*arguments)
    assert outcome.code == 1
    assert _rows(seen[0])[0] == {"waiting": 2, "running": 0, "done": 0, "failed": 0, "pruned": 0, "stopped": 0}
    assert seen[0].exit_code is None and (seen[0].run.job_type, seen[0].run.project) == ("sweep", "p")
    found = _own(outcome.folder)
    states = [(row["waiting"], row["running"], row["done"], row["failed"]) for row in _rows(found)]
    assert states[0] == (2, 0, 0, 0) and (1, 1, 0, 0) in states and states[-1] == (0, 0, 1, 1)
    assert [row for row, before in zip(states[1:-1], states[:-2], strict=True) if row == before] == [], "only news"
    assert found.run.display_name == found.run.run_group == "run"
    assert set(found.run.tags) == {"sweep", "mine", "none", "rtn", "tiny_random", "tiny", "w8a8_tensor"}
    assert found.config["swept"] == {"quantizer": ["none", "rtn"]} and "quantizer" not in found.config
    assert found.config["model"]["path"] == str(tiny.model) and found.config["jobs"] == [
        "quantizer=none",
        "quantizer=rtn",
    ]
    assert "quantizer=none,rtn" in found.config["overrides"]
    assert found.exit_code == 1 and not found.preempting
    assert (found.summary["state"], found.summary["why"]) == ("failed", "1 of 2 jobs failed")
    _check_report(found, outcome.folder)
    jobs = {read_offline(path).run.run_id for path in outcome.folder.glob("?_*")}
    assert len(jobs) == 2 and found.run.run_id not in jobs


def _check_report(found: Offline, folder: Path) -> None:
    files = offline_files(folder / "wandb")[0].parent / "files"
    table = json.loads((files / found.history["table/path"]).read_text())
    with (folder / "table.csv").open(newline="") as file:
        assert table["columns"] == next(csv.reader(file))
    assert len(table["data"]) == 2, "the one that failed too"
    assert (files / found.history["report/path"]).read_text().startswith("<!")


def test_a_sweep_that_is_ended_goes_on_as_the_same_run(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = benchmark.compute_run

    def ending(run: Any) -> Any:
        if run.config.seed == 1:
            raise Ended(15)
        return compute(run)

    watched = "segquant_bench.pipelines.results.watched.compute_run"
    arguments = ["-m", *tiny.overrides(cache), "quantizer=none", "seed=0,1", "logger=wandb", "metric.metrics=[psnr]"]
    with monkeypatch.context() as patch:
        patch.setattr(watched, ending)
        outcome = command(*arguments)
    assert outcome.code == 143
    first = _own(outcome.folder)
    assert first.preempting and first.exit_code == 1
    assert (first.summary["state"], first.summary["why"]) == ("preempted", "ended by SIGTERM")
    assert (_rows(first)[-1]["done"], _rows(first)[-1]["stopped"]) == (1, 1)
    shutil.rmtree(outcome.folder / "wandb")
    outcome = command(*arguments, "generate.processes=1")
    second = _own(outcome.folder)
    assert outcome.code == 0 and second.exit_code == 0 and second.summary["state"] == "finished"
    assert second.run.run_id == first.run.run_id and second.summary["jobs/done"] == 2
    assert "table/path" in second.history


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_of_other_processes(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """The process of the command owns the run; jobs begin a service of W&B of their own."""
    arguments = ["-m", *tiny.overrides(cache), "quantizer=none,rtn", "logger=wandb", f"hydra/launcher={launcher}"]
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    found = _own(outcome.folder)
    assert found.config["launcher"] == launcher and found.exit_code == 0
    assert _rows(found)[0]["waiting"] == 2 and _rows(found)[-1]["done"] == 2
    assert any(row["running"] for row in _rows(found)) and "table/path" in found.history
    assert all(read_offline(path).exit_code == 0 for path in outcome.folder.glob("?_*"))
    assert "WANDB_SERVICE" not in os.environ


def test_tensorboard_has_the_jobs_too(command: Command, tiny: Tiny, cache: Path) -> None:
    pytest.importorskip("tensorboardX", reason="of the extra tensorboard")
    outcome = command("-m", *tiny.overrides(cache), "quantizer=none", "seed=0,0", "logger=tensorboard", "report=false")
    assert outcome.code == 0, outcome.err
    scalars, texts = scalars_of(outcome.folder / "tensorboard"), texts_of(outcome.folder / "tensorboard")
    assert scalars["jobs/waiting"][0] == (1, 1.0) and scalars["jobs/done"][-1][1] == 1.0
    assert texts["state"] == ["finished"] and "sweep" in texts["run"][0]


def _asked(*overrides: str, **changed: Any) -> Asked:
    logger = OmegaConf.structured(LoggerConfig("wandb", mode="offline", project="a/b"))
    return Asked(logger, overrides, Path("cache"), {"seed": 0, "quantizer": {"alpha": 0.5, "rank": 4}, **changed})


def test_a_sweep_is_known_by_what_it_was_asked_for(tmp_path: Path) -> None:
    known = sweep_id(_asked("quantizer=rtn,gptq", "seed=0"))
    assert sweep_id(_asked("seed=0", "quantizer=rtn,gptq", "cache=x", "logger.mode=online", "retries=3")) == known
    assert sweep_id(_asked("quantizer=rtn,gptq", "seed=1")) != known
    assert sweep_id(_asked("quantizer=rtn,gptq", "seed=0", dtype="bfloat16")) != known
    assert sweep_id(_asked(components={1: {"a": 2}, "b": float("nan")}))
    jobs = [Listed(f"{seed}_x", (f"seed={seed}", "quantizer.alpha=1", f"quantizer.rank={seed}")) for seed in range(3)]
    shown = about_sweep(tmp_path, _asked("seed=0,1,2"), jobs, "content")
    assert shown.config["swept"] == {"seed": ["0", "1", "2"], "quantizer.rank": ["0", "1", "2"]}
    assert "seed" not in shown.config and shown.config["quantizer"] == {"alpha": 0.5}
    assert about_sweep(tmp_path / "other", _asked("seed=0,1,2"), jobs, "other").id == shown.id


def test_no_fault_of_the_logger_ends_a_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = SweepRun(tmp_path, _asked("seed=0,1"), "begun")
    sweep.begin([])
    sweep.show_report()
    sweep.end()
    assert caplog.text.count("the sweep has no run of its own in the logger: logger.project='a/b' is no name") == 1


def test_the_pace_counts_jobs_by_their_end(tmp_path: Path) -> None:
    """Of another process: one that was killed is not taken for running."""
    record = SweepRecord(tmp_path, "s")
    jobs = {"done": "done", "failed": "failed", "pruned": "pruned", "ended": "ended", "lost": None, "runs": None}
    record.add([Listed(name, (name,)) for name in (*jobs, "waits")])
    for name, outcome in jobs.items():
        (tmp_path / name).mkdir()
        pid = 0 if name == "lost" else os.getpid()
        ended = None if outcome is None else time.time()
        (tmp_path / name / JOB).write_text(json.dumps(
            {**this_process(), "pid": pid, "sweep": "s", "began": time.time() - 1, "ended": ended, "tries": 1,
             "outcome": outcome}))  # fmt: skip
    record.end()
    found = pace_of(tmp_path)
    assert found is not None and found.missing == 5
    assert found.counts() == {
        "jobs": 7, "jobs/waiting": 1, "jobs/running": 1, "jobs/done": 1, "jobs/failed": 1, "jobs/pruned": 1,
        "jobs/stopped": 2,
    }  # fmt: skip
    assert str(found).startswith("1 done, 1 pruned, 1 failed, about ")
