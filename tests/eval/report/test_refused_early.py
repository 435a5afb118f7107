"""What a report would fail at is told before its work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from segquant_bench.eval import render
from segquant_bench.eval.cli import main
from tests.eval.support import smooth_pictures, write_pictures
from tests.eval.sweep import run_record


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of which nobody may compare or draw anything."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    for name in ("compare_runs", "compare_chosen", "extras", "picture_grid", "bytes_plot", "render_page"):
        monkeypatch.setattr(render, name, work)
    root, prompts = tmp_path / "sweep", ["a cat", "a dog"]
    for job, name in enumerate(("rtn", "gptq")):
        record = run_record(name, "w8a8", 8.0, prompts, [])
        record["artifacts"] = {"images": "images", "reference": "reference"}
        for kind in ("images", "reference"):
            write_pictures(root / str(job) / kind, smooth_pictures(2, 8, seed=job))
        (root / str(job) / "results.json").write_text(json.dumps(record | {"config_hash": name}))
    return root


def _without_picture(root: Path) -> None:
    (root / "1" / "images" / "00000.png").unlink()


def _empty_picture(root: Path) -> None:
    (root / "1" / "images" / "00000.png").write_bytes(b"")


def _without_reference(root: Path) -> None:
    for path in root.glob("*/reference"):
        shutil.rmtree(path)


@pytest.mark.parametrize(("damage", "words"), [
    (_without_picture, "1/images/00000.png is not there; run that job again, or leave the grid out with --no-grid"),
    (_empty_picture, "1/images/00000.png is empty; run that job again"),
    (_without_reference, "the reference pictures of "),
])  # fmt: skip
def test_missing_pictures(
    lazy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], words: str
) -> None:
    damage(lazy)
    assert main([str(lazy), "--output", str(tmp_path / "out")]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("segquant-report: ") and words in sentence
    assert not (tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="the work has begun"):
        main([str(lazy), "--output", str(tmp_path / "out"), "--no-grid"])


def test_a_folder_that_is_none(lazy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "report"):
        assert main([str(lazy), "--output", str(place)]) == 2
        told = capsys.readouterr().err
        assert f"{tmp_path / 'file'} is no folder" in told and f"written to {place}; choose another --output" in told


def test_a_folder_that_takes_no_files(
    lazy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    assert main([str(lazy), "--output", str(tmp_path / "out")]) == 2
    assert f"{tmp_path} takes no files" in capsys.readouterr().err


def test_columns_that_there_are_not(lazy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(lazy), "--output", str(tmp_path / "out"), "--columns", "moon"]) == 2
    assert "moon" in capsys.readouterr().err
