"""segquant-status: what every state looks like on disk, on this machine and on another, whole and damaged."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.eval import jobs
from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.jobs import JOB, SWEEP, this_process
from segquant_bench.eval.status import STATES, read_status
from segquant_bench.eval.status_cli import duration, main
from tests.eval.sweep import run_record

NOW = 0.0


@pytest.fixture(autouse=True)
def _now() -> None:
    """Of each test: the suite takes longer than what is told of these jobs."""
    global NOW
    NOW = time.time()


ELSEWHERE = {"host": "node7", "pid": 1, "place": "another machine"}


def _dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def _write(path: Path, record: dict[str, Any], age: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    os.utime(path, (time.time() - age,) * 2)


def _sweep(root: Path, folders: list[str], total: int = 0, **more: Any) -> Path:
    listed = [{"folder": name, "overrides": [f"quantizer={name}"]} for name in folders]
    record = {**this_process(), "sweep": "s", "began": NOW - 600, "ended": None, "jobs": listed, "total": total}
    _write(root / SWEEP, {**record, **more})
    return root


def _job(folder: Path, age: float = 0.0, **more: Any) -> None:
    record = {**this_process(), "sweep": "s", "began": NOW - 100, "ended": None, "outcome": None, "tries": 1}
    _write(folder / JOB, {**record, **more}, age)


def _done(place: Path, seconds: float = 30.0) -> None:
    _job(place, began=NOW - 200, ended=NOW - 200 + seconds, outcome="done")
    (place / "results.json").write_text(json.dumps(run_record("rtn", "w8a8", 8.0, ["a cat"], [])))


def _failed(place: Path, **more: Any) -> None:
    _job(place, ended=NOW, outcome="failed")
    _write(place / "failure.json", {"schema": 1, "message": "out of memory: too much", **more})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep that runs, with a job in every state and three that wait, one of them not listed yet."""
    root = _sweep(
        tmp_path / "sweep", ["done", "also", "failed", "here", "there", "killed", "gone", "ended", "a", "b"], 11
    )
    _done(root / "done", 30)
    _done(root / "also", 90)
    _failed(root / "failed", tries=3)
    _job(root / "here", tries=2)
    (root / "here" / "segquant.log").write_text("[12:00:00] reference: computing\n[12:00:09] generate: computing\n")
    _job(root / "there", age=2 * jobs.BEAT, **ELSEWHERE)
    _job(root / "killed", pid=_dead())
    _job(root / "gone", age=2 * jobs.SILENT, **ELSEWHERE)
    _job(root / "ended", ended=NOW, outcome="ended")
    (root / "b").mkdir()
    (root / "b" / "results.json").write_text("of an earlier sweep")
    return root


def test_every_state(sweep: Path) -> None:
    status = read_status(sweep)
    states = {job.name: job.state for job in status.jobs}
    assert states == {
        "done": "done", "also": "done", "failed": "failed", "here": "running", "there": "running",
        "killed": "stopped", "gone": "stopped", "ended": "stopped", "a": "waiting", "b": "waiting",
    }  # fmt: skip
    counts = {"done": 2, "pruned": 0, "running": 2, "waiting": 3, "failed": 1, "stopped": 3, "damaged": 0}
    assert status.counts == counts and list(counts) == list(STATES) and sum(counts.values()) == status.total == 11
    why = {job.name: job.why for job in status.jobs}
    assert why["failed"] == "out of memory: too much (tried 3 times)"
    assert why["here"] == "[12:00:09] generate: computing"
    assert "node7" in why["gone"] and "same command" in why["gone"] and "signal" in why["ended"]


def test_time_left_is_that_of_the_mean_job_on_as_many_places(sweep: Path) -> None:
    left, mean, elapsed = read_status(sweep).seconds_left, (30 + 90) / 2, 100.0
    assert left is not None and elapsed > mean, "running jobs are over their time already"
    assert left == pytest.approx(3 * mean / 2, abs=1)
    _job(sweep / "here", began=time.time() - 10)
    left = read_status(sweep).seconds_left
    assert left is not None and left == pytest.approx((3 * mean + 50) / 2, abs=1)
    _job(sweep / "a", began=time.time())
    for name in ("b", "there"):
        _done(sweep / name, 60)
    left = read_status(sweep).seconds_left
    assert left is not None and left == pytest.approx((50 + 60 + 60) / 2, abs=1)


def test_nothing_is_said_of_the_time_before_a_job_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _sweep(tmp_path, ["a", "b"])
    _job(root / "a")
    assert read_status(root).seconds_left is None
    assert main([str(root)]) == 0
    assert "2 jobs: 0 done, 1 running, 1 waiting, 0 failed\n  time left: not known" in capsys.readouterr().out


def test_the_command(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 1
    out = capsys.readouterr().out
    assert "11 jobs: 2 done, 2 running, 3 waiting, 1 failed, 3 stopped\n" in out
    for line in (
        "time left: about 90 s", "failed: failed: out of memory: too much (tried 3 times)", "running for 10 min on",
        "running: here (", " on ", ", try 2): [12:00:09] generate: computing",
    ):  # fmt: skip
        assert line in out
    assert main([str(sweep), "--json"]) == 1
    (record,) = json.loads(capsys.readouterr().out)
    assert record["done"] == 2 and record["total"] == 11 and record["seconds_left"] == pytest.approx(90, abs=1)


def test_durations() -> None:
    texts = {95.2: "95 s", 130: "2 min", 3600: "1 h", 7260: "2 h 1 min", 90000: "1 d 1 h", -3: "0 s"}
    assert {seconds: duration(seconds) for seconds in texts} == texts


def test_a_sweep_that_is_lost_or_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = _sweep(tmp_path / "lost", ["a", "b"], pid=_dead())
    _done(lost / "a")
    assert main([str(lost)]) == 0
    out = capsys.readouterr().out
    assert "is lost; the same command goes on where it stopped" in out and "time left" not in out
    over = _sweep(tmp_path / "over", ["a", "b"], ended=NOW)
    _done(over / "a")
    _done(over / "b")
    _done(over / "old")
    _job(over / "old", sweep="before", ended=NOW, outcome="done")
    assert main([str(over)]) == 0
    out = capsys.readouterr().out
    assert "2 jobs: 2 done, 0 running, 0 waiting, 0 failed\n  ended after 10 min\n" in out
    assert "  and 1 run of earlier commands (" in out


def _trial(number: int, folder: str, state: str) -> dict[str, Any]:
    return {"number": number, "folder": folder, "params": {}, "state": state, "values": [], "layer_error": None}


def test_a_killed_job_of_a_search_is_of_this_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _sweep(tmp_path, ["2_a"], ended=NOW)
    _done(root / "2_a")
    _job(root / "0_a", sweep="before", ended=NOW - 50, outcome="done")
    _job(root / "1_a", sweep="before", pid=_dead())
    _job(root / "of_another", sweep="before", pid=_dead())
    trials = [_trial(0, "0_a", "complete"), _trial(1, "1_a", "fail"), _trial(2, "2_a", "complete")]
    study = {"schema": 1, "objectives": {"output_error": "minimize"}, "trials": trials}
    _write(root / "study.json", study)
    assert read_status(root).killed == ("1_a",) and main([str(root)]) == 0
    out = capsys.readouterr().out
    assert "  and 1 job of this search that a kill ended, and that it drew again: 1_a\n" in out
    assert "  and 2 runs of earlier commands (" in out
    main([str(root), "--json"])
    assert json.loads(capsys.readouterr().out)[0]["killed"] == ["1_a"]
    (root / "study.json").write_text("{")
    assert read_status(root).killed == () and read_status(root).others == 3


def test_folders_of_which_no_sweep_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As earlier versions left them, and of single runs."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text(json.dumps(run_record("rtn", "w8a8", 8.0, ["a cat"], [])))
    _failed(tmp_path / "one")
    (tmp_path / "one" / JOB).unlink()
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "2 jobs found (how many were asked for is not recorded): 1 done, 0 running, 0 waiting, 1 failed\n" in out
    assert main([str(tmp_path / "old")]) == 0


def test_a_trial_that_was_pruned_needs_no_results(tmp_path: Path) -> None:
    root = _sweep(tmp_path, ["a"], ended=NOW)
    _job(root / "a", ended=NOW, outcome="pruned", value={"pruned": 0.5})
    assert [job.state for job in read_status(root).jobs] == ["pruned"] and main([str(root)]) == 0


def test_jobs_that_share_a_folder_or_have_none(tmp_path: Path) -> None:
    root = _sweep(tmp_path, ["a", "a", ""], ended=NOW)
    _done(root / "a")
    _failed(root / "refused_1")
    states = [(job.state, job.why) for job in read_status(root).jobs]
    assert states[:2] == [("done", ""), ("failed", "it shares the folder a with another job")]
    assert states[2] == ("failed", "its folder is not known") and states[3][0] == "failed"


@pytest.mark.parametrize(("argument", "words"), [
    ("nowhere", "nowhere is no directory"), (".", "has no run in it"),
])  # fmt: skip
def test_no_folder_of_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([argument]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


@pytest.mark.parametrize("name", [JOB, "results.json"])
def test_a_file_that_is_missing(sweep: Path, name: str) -> None:
    (sweep / "done" / name).unlink()
    (job,) = [job for job in read_status(sweep).jobs if job.name == "done"]
    if name == JOB:  # then the results are an earlier sweep's
        assert job.state == "waiting"
    else:
        assert job.state == "damaged" and "results.json is missing, although the run ended" in job.why


def test_damaged_files_are_told_of_and_the_rest_is_there(sweep: Path) -> None:
    """Any of them, cut or overwritten anywhere: a sentence of one line, and the other jobs' states as before."""
    draw, before = random.Random(0), {job.name: job.state for job in read_status(sweep).jobs}
    files = [sweep / "done" / JOB, sweep / "done" / "results.json", sweep / "failed" / "failure.json", sweep / SWEEP]
    for path in files:
        whole = path.read_bytes()
        for content in [b"", b"\xff\xfe", b"[]", b"null", b'{"schema": 2}', *(_spoilt(whole, draw) for _ in range(25))]:
            path.write_bytes(content)
            status = read_status(sweep)
            states = {job.name: job.state for job in status.jobs}
            owner = path.parent.name
            if path.name == SWEEP and status.sweep is None:
                assert len(status.problems) == 1 and str(path) in status.problems[0]
                continue
            assert {**states, owner: before.get(owner)} == {**before, owner: before.get(owner)}
            told = next((job.why for job in status.jobs if job.name == owner and job.state == "damaged"), "x")
            assert told and "\n" not in told
        path.write_bytes(whole)


def _spoilt(whole: bytes, draw: random.Random) -> bytes:
    """Cut short, or another value for a key."""
    if draw.random() < 0.5:
        return whole[: draw.randrange(len(whole))]
    raw = json.loads(whole)
    key = draw.choice([key for key in raw if key != "jobs"])
    if raw is not None:
        raw[key] = draw.choice([None, [], {}, "x", -1, 1e300, True])
    return json.dumps(raw).encode()


def test_a_folder_that_cannot_be_read(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root reads everything, the system's answer is put in."""

    def refused(path: Path) -> Any:
        raise EvalError(f"{path} cannot be read: Permission denied")

    monkeypatch.setattr("segquant_bench.eval.status.load_job", refused)
    states = {job.name: job for job in read_status(sweep).jobs}
    assert states["done"].state == "damaged" and "Permission denied" in states["done"].why
