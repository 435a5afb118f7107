"""Stages on disk: published whole, computed once, whoever asks."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from segquant.files import write_json
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.cache import copy_tree, run_stage, stage_key


def _write(folder: Path) -> None:
    (folder / "value").write_text("1")


def _fail(_: Path) -> None:
    raise AssertionError("computed again")


def test_second_call_finds_the_first(tmp_path: Path) -> None:
    first = run_stage("reference", tmp_path, {"a": 1, "b": [2]}, _write)
    second = run_stage("reference", tmp_path, {"b": [2], "a": 1}, _fail)
    assert (first.cached, second.cached) == (False, True)
    assert second.path == first.path and (second.path / "value").read_text() == "1"
    assert second.seconds == first.seconds and second.peak_memory_mb == first.peak_memory_mb
    assert json.loads((first.path / "stage.json").read_text())["depends"] == {"a": 1, "b": [2]}


def test_key_depends_on_everything(tmp_path: Path) -> None:
    keys = {
        stage_key(name, depends)
        for name, depends in [
            ("a", {"x": 1}),
            ("b", {"x": 1}),
            ("a", {"x": 2}),
            ("a", {"y": 1}),
            ("a", {"x": "1"}),
            ("a", {"x": [1]}),
        ]  # fmt: skip
    }
    assert len(keys) == 6


def test_failure_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        _write(folder)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        run_stage("quantize", tmp_path, {}, half)
    assert [path.suffix for path in (tmp_path / "stage").iterdir()] == [".lock"]
    assert not run_stage("quantize", tmp_path, {}, _write).cached


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    name = f"quantize-{stage_key('quantize', {})}"
    leftover = tmp_path / "stage" / f"{name}.partial12345"
    leftover.mkdir(parents=True)
    (leftover / "value").write_text("half")
    stage = run_stage("quantize", tmp_path, {}, _write)
    assert not leftover.exists() and (stage.path / "value").read_text() == "1"


def test_full_disk_and_other_os_errors_are_one_sentence(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def forbidden(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/some/file")

    with pytest.raises(PipelineError, match="disk is full: stage generate"):
        run_stage("generate", tmp_path, {}, full)
    with pytest.raises(PipelineError, match="/some/file"):
        run_stage("generate", tmp_path, {}, forbidden)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(PipelineError, match="Not a directory"):
        run_stage("generate", blocked, {}, _write)


def _count(folder: Path) -> None:
    counter = Path(os.environ["COUNTER"])
    with counter.open("a") as file:
        file.write("x")
    time.sleep(0.3)
    _write(folder)


def _worker(cache: str, queue) -> None:
    queue.put(run_stage("reference", Path(cache), {}, _count).cached)


def test_parallel_runs_compute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTER", str(tmp_path / "counter"))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(str(tmp_path / "cache"), queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = sorted(queue.get(timeout=600) for _ in workers)
    for worker in workers:
        worker.join()
    assert found == [False, True, True]
    assert (tmp_path / "counter").read_text() == "x"


def test_a_copied_tree_replaces_what_was_there_and_is_nobody_elses(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    _write(source / "sub")
    target.mkdir()
    (target / "old").write_text("")
    copy_tree(source, target)
    assert [path.name for path in target.iterdir()] == ["sub"]
    copied = target / "sub" / "value"
    assert copied.read_text() == "1" and copied.stat().st_mtime_ns == (source / "sub" / "value").stat().st_mtime_ns
    with copied.open("r+") as file:  # as an editor that writes into the file
        file.write("2")
    assert (source / "sub" / "value").read_text() == "1"


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
