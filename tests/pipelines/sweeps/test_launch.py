"""Jobs that are tried again: which, how often, in which folder; and processes that end without a word."""

from __future__ import annotations

import errno
import json
import math
import socket
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from filelock import Timeout
from hydra.core.utils import JobReturn, JobStatus

from segquant_bench.eval.failures import load_failures
from segquant_bench.eval.jobs import JOB, Listed, load_job
from segquant_bench.eval.report.main_table.failed import failed_table
from segquant_bench.eval.status import read_status
from segquant_bench.eval.tables.render_markdown import to_markdown
from segquant_bench.pipelines.errors import PipelineError, mendable
from segquant_bench.pipelines.stages import benchmark
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.sweeps.launch import Launch, LostJob, failure_of, lost, raise_failure
from segquant_bench.pipelines.sweeps.record import MARK, SweepRecord, job_record
from tests.pipelines.conftest import Command, Tiny

Job = Callable[[str, int], object]


class Killed(BaseException):
    """Ends a worker of `Pool` as a kill would."""


class Pool:
    """A launcher of jobs `job(name, how often it was begun)`; one that raises `Killed` breaks it, as joblib's."""

    def __init__(self, root: Path, job: Job) -> None:
        self.root, self.job, self.begun, self.launches = root, job, list[str](), list[list[str]]()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.launches.append([overrides[0] for overrides in job_overrides])
        return [self._run(list(overrides), initial_job_idx + i) for i, overrides in enumerate(job_overrides)]

    def _run(self, overrides: list[str], number: int) -> JobReturn:
        name = overrides[0]
        subdirs = [each.partition("=")[2].strip("'") for each in overrides if each.startswith("hydra.sweep.subdir=")]
        folder = self.root / (subdirs[0] if subdirs else f"{number}_{name}")
        folder.mkdir(exist_ok=True)
        (folder / f"{MARK}s").touch(exist_ok=False)
        self.begun.append(name)
        result = JobReturn(status=JobStatus.COMPLETED)
        try:
            with job_record(folder, "s") as told:
                result.return_value = told["value"] = self.job(name, self.begun.count(name))
        except Killed:
            record = json.loads((folder / JOB).read_text())
            (folder / JOB).write_text(
                json.dumps({**record, "pid": 0, "ended": None, "outcome": None})
            )  # as it was before
            raise BrokenProcessPool("a worker was killed") from None
        except PipelineError as error:
            result.status, result.return_value = JobStatus.FAILED, error
        return result


def _launched(root: Path, names: str, job: Job, retries: int, batch: int | None = None) -> tuple[Pool, list[JobReturn]]:
    pool, record = Pool(root, job), SweepRecord(root, "s")
    listed = [Listed(f"{number}_{name}", (name,)) for number, name in enumerate(names)]
    try:
        record.add(listed)
        return pool, Launch(pool, record, retries, batch).run(listed)  # type: ignore[arg-type]
    finally:
        record.end()


def _failing(kind: str, times: int) -> Job:
    def job(name: str, tries: int) -> str:
        if name == "b" and tries <= times:
            error = PipelineError("it failed")
            error.mendable = kind
            raise error
        return name

    return job


@pytest.mark.parametrize(("kind", "times", "retries", "begun", "ends"), [
    ("memory", 1, 2, "abcb", True), ("memory", 2, 2, "abcbb", True), ("memory", 9, 2, "abcbb", False),
    ("memory", 1, 0, "abc", False), ("", 1, 2, "abc", False),
])  # fmt: skip
def test_what_may_be_mended_is_tried_again_at_the_end(
    tmp_path: Path, kind: str, times: int, retries: int, begun: str, ends: bool
) -> None:
    pool, results = _launched(tmp_path, "abc", _failing(kind, times), retries)
    assert "".join(pool.begun) == begun
    assert [failure_of(result) is None for result in results] == [True, ends, True]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0_a", "1_b", "2_c"]
    assert load_job(tmp_path / "1_b" / JOB).tries == begun.count("b")


def test_batches(tmp_path: Path) -> None:
    pool, results = _launched(tmp_path, "abcde", _failing("disk", 1), 1, batch=2)
    assert pool.launches == [["a", "b"], ["c", "d"], ["e"], ["b"]]
    assert [result.return_value for result in results] == list("abcde")


def test_a_killed_process_takes_no_other_job_along(tmp_path: Path) -> None:
    """Those that had not begun go on at once, the one that breaks the pool alone at the end."""

    def job(name: str, tries: int) -> str:
        if name == "b" and tries == 1:
            raise Killed
        return name

    pool, results = _launched(tmp_path, "abcd", job, 1)
    assert pool.launches == [["a", "b", "c", "d"], ["c", "d"], ["b"]]
    assert [result.return_value for result in results] == list("abcd"), "a's as its record has it"
    assert read_status(tmp_path).counts["damaged"] == 4, "results.json, which these jobs do not write"


@pytest.mark.parametrize("value", [math.inf, [1.5, -math.inf], {"pruned": 0.5}, None])
def test_what_a_job_returned_is_in_its_record(tmp_path: Path, value: object) -> None:
    def job(name: str, tries: int) -> object:
        if name == "b":
            raise Killed
        return value

    _, results = _launched(tmp_path, "ab", job, 0)
    assert results[0].return_value == value


def test_a_process_that_is_killed_each_time(tmp_path: Path) -> None:
    def job(name: str, tries: int) -> str:
        if name == "b":
            raise Killed
        return name

    pool, results = _launched(tmp_path, "abc", job, 2)
    assert pool.begun == ["a", "b", "c", "b", "b"]
    assert isinstance(failure_of(results[1]), LostJob) and failure_of(results[2]) is None
    (failure,) = load_failures([tmp_path])
    assert failure.path.parent.name == "1_b" and failure.tries == 3 and failure.mendable == "process"
    assert "process was lost" in failure.message
    assert "(tried 3 times)" in to_markdown(failed_table([failure]))
    (job_state,) = [job for job in read_status(tmp_path).jobs if job.state == "failed"]
    assert job_state.name == "1_b" and "(tried 3 times)" in job_state.why


def test_a_launcher_that_starts_no_process(tmp_path: Path) -> None:
    class Broken(Pool):
        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            self.launches.append([])
            raise BrokenProcessPool("none")

    pool, record = Broken(tmp_path, lambda name, tries: name), SweepRecord(tmp_path, "s")
    results = Launch(pool, record, 1).run([Listed("0_a", ("a",)), Listed("1_b", ("b",))])  # type: ignore[arg-type]
    assert all(isinstance(failure_of(result), LostJob) for result in results)
    assert len(pool.launches) == 3, "both together, then each by itself"


def test_a_lost_job_has_a_sentence() -> None:
    error = failure_of(lost(LostJob()))
    assert isinstance(error, PipelineError) and mendable(error) == "" and error.mendable == "process"


def _caused(cause: BaseException) -> PipelineError:
    error = PipelineError("a sentence")
    error.__cause__ = cause
    return error


class Answer(Exception):
    def __init__(self, code: int) -> None:
        self.response = type("Response", (), {"status_code": code})()


@pytest.mark.parametrize(("error", "kind"), [
    (MemoryError(), "memory"),
    (_caused(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")), "memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    (_caused(OSError(errno.ENOSPC, "No space left on device")), "disk"),
    (OSError(errno.ESTALE, "Stale file handle"), "disk or network"),
    (_caused(ConnectionResetError(errno.ECONNRESET, "reset")), "disk or network"),
    (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "disk or network"),
    (Answer(503), "disk or network"),
    (Answer(404), ""),
    (PipelineError("quantizer=rtnn is no option"), ""),
    (FileNotFoundError(errno.ENOENT, "No such file"), ""),
    (PermissionError(errno.EACCES, "Permission denied"), ""),
    (_caused(Timeout("another run writes there")), ""),
    (ZeroDivisionError("a fault of the program"), ""),
])  # fmt: skip
def test_what_another_try_may_mend(error: BaseException, kind: str) -> None:
    assert mendable(error) == kind


def test_a_sweep_tries_again_and_says_so(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job is short of memory once, one always, one is refused; while they run, the status knows."""
    check_run, begun, seen = benchmark.check_run, list[str](), list[dict[str, int]]()

    def short(run: Run) -> None:
        name = run.config.name
        begun.append(name)
        seen.append(read_status(cache.parent / "run").counts)
        if name.endswith("_w8a8") or (name.startswith("rtn_w4a16") and begun.count(name) == 1):
            raise MemoryError
        check_run(run)

    monkeypatch.setattr(benchmark, "check_run", short)
    arguments = ["-m", *tiny.overrides(cache), "quantizer=smoothquant,rtn", "precision=w4a16,w8a8", "retries=2"]
    outcome = command(*arguments, "dataset.size=2")
    assert outcome.code == 1
    counted = {name: begun.count(name) for name in begun}
    assert counted == {"smoothquant_w4a16": 1, "smoothquant_w8a8": 3, "rtn_w4a16": 2, "rtn_w8a8": 3}
    assert [counts["running"] for counts in seen] == [1] * len(seen)
    assert seen[0] == {"done": 0, "pruned": 0, "running": 1, "waiting": 3, "failed": 0, "stopped": 0, "damaged": 0}
    status = read_status(outcome.folder)
    states = {job.name: job.state for job in status.jobs}
    assert states == {
        "0_smoothquant_w4a16": "failed", "1_smoothquant_w8a8": "failed", "2_rtn_w4a16": "done", "3_rtn_w8a8": "failed",
    }  # fmt: skip
    assert status.is_over and status.sweep is not None and status.sweep.ended is not None
    failures = {failure.path.parent.name: failure for failure in load_failures([outcome.folder])}
    refused, short_of = failures["0_smoothquant_w4a16"], failures["3_rtn_w8a8"]
    assert (refused.tries, refused.mendable) == (1, "") and (short_of.tries, short_of.mendable) == (3, "memory")
    table = (outcome.folder / "table.md").read_text()
    assert "out of memory" in table and "(tried 3 times)" in table


def test_retries_out_of_range(command: Command, tiny: Tiny, cache: Path) -> None:
    for arguments in (["retries=-1"], ["-m", "retries=-1", "quantizer=rtn"]):
        outcome = command(*tiny.overrides(cache), *arguments)
        assert outcome.code == 1 and "retries=-1 is out of range; it must be from 0 to 1000" in outcome.sentence


def test_a_failure_is_raised_without_a_line_of_hydras(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    done = JobReturn(status=JobStatus.COMPLETED)
    done.return_value = 1.0
    raise_failure(done)
    with pytest.raises(PipelineError, match="seed=-1 is none"):
        raise_failure(lost(PipelineError("seed=-1 is none")))
    assert capfd.readouterr().err == "" and not caplog.records
    fault = JobReturn(status=JobStatus.FAILED, overrides=["seed=1", "a=b"])
    fault.return_value = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        raise_failure(fault)
    assert caplog.messages == ["a fault in the job seed=1 a=b"]


@pytest.mark.slow
def test_the_sentences_of_jobs_in_other_processes(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    given = ["hydra/launcher=joblib", "logger=none", f"cache={tmp_path / 'cache'}"]
    outcome = command("-m", *given, "quantizer=rtn,gptq", f"model.path={tmp_path / 'none'}")  # seen by jobs alone
    assert outcome.code == 1 and "Error executing job" not in outcome.err and "Traceback" not in outcome.err
    assert outcome.sentence.startswith(f"segquant: model directory {tmp_path / 'none'} does not exist; ")
    assert len(load_failures([outcome.folder])) == 2
