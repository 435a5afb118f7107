"""What a killed run leaves to the next."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from segquant.files import write_whole
from segquant_bench.pipelines.runtime import cache
from segquant_bench.pipelines.runtime.cache import run_stage, stage_key
from segquant_bench.pipelines.runtime.finished import Finished
from segquant_bench.pipelines.runtime.unfinished import PIECES, Unfinished

NAME = "generate"


class Kill(BaseException):
    """As a signal: no Exception."""


def _compute(made: list[int], stop: int | None = None, error: BaseException | None = None):
    def compute(folder: Path) -> None:
        (folder / "images").mkdir(exist_ok=True)
        (folder / "engine.json").write_text("{}")
        for number in range(6):
            path = folder / "images" / f"{number}.png"
            if path.is_file():
                continue
            if number == stop and error is not None:
                raise error
            write_whole(path, lambda partial, number=number: partial.write_text(str(number)))
            made.append(number)

    return compute


def _run(cache: Path, made: list[int], stop: int | None = None, error: BaseException | None = None):
    return run_stage(NAME, cache, {}, _compute(made, stop, error), keeps=("images",))


def _partials(cache: Path) -> list[Path]:
    return list((cache / "stage").glob("*.partial*"))


def test_finished_pictures_are_kept_and_the_rest_is_made(tmp_path: Path) -> None:
    made: list[int] = []
    for stop in (2, 5):
        with pytest.raises(Kill):
            _run(tmp_path, made, stop, Kill())
        (partial,) = _partials(tmp_path)
        assert len(list((partial / "images").iterdir())) == stop
    found = _run(tmp_path, made)
    assert made == [0, 1, 2, 3, 4, 5] and not _partials(tmp_path)
    files = json.loads((found.path / "stage.json").read_text())["files"]
    assert sorted(files) == ["engine.json", *(f"images/{number}.png" for number in range(6))]
    assert not list(found.path.rglob(".*"))


def test_what_was_being_written_and_what_is_not_kept_goes(tmp_path: Path) -> None:
    partial = tmp_path / "stage" / f"{NAME}-{stage_key(NAME, {})}.partial"
    (partial / "images").mkdir(parents=True)
    (partial / "images" / "0.png").write_text("0")
    (partial / "images" / ".1.png.abcd").write_text("ha")
    (partial / "exported").mkdir()
    (partial / "left.json").write_text("")
    made: list[int] = []
    found = _run(tmp_path, made)
    assert made == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in found.path.iterdir()) == ["engine.json", "images", "stage.json"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"):
        _run(tmp_path, [], 3, ValueError("wrong"))
    assert not _partials(tmp_path)


def test_an_interrupt_before_the_first_picture_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Kill):
        _run(tmp_path, [], 0, Kill())
    assert not _partials(tmp_path)


def test_seconds_of_earlier_runs_count(tmp_path: Path) -> None:
    with pytest.raises(Kill):
        _run(tmp_path, [], 3, Kill())
    (partial,) = _partials(tmp_path)
    began = time.time() - 500
    (partial / ".began.json").write_text(json.dumps([40.0, began]))
    for path in (partial / "images").iterdir():
        os.utime(path, (began + 100, began + 100))
    assert 140 <= _run(tmp_path, []).seconds < 160


def test_a_stage_that_keeps_nothing_begins_anew(tmp_path: Path) -> None:
    partial = tmp_path / "stage" / f"{NAME}-{stage_key(NAME, {})}.partial"
    (partial / "images").mkdir(parents=True)
    (partial / "images" / "0.png").write_text("another's")
    made: list[int] = []
    run_stage(NAME, tmp_path, {}, _compute(made))
    assert made == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("place", ["let_others_read", "settle", "without_help", "sync"])
@pytest.mark.parametrize("signal", [True, False], ids=["interrupted", "killed"])
def test_a_stage_that_only_lacks_its_name_is_not_made_again(
    place: str, signal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What helps a later run was removed before the name was given: a kill between them lost the whole stage."""
    made: list[int] = []

    def compute(folder: Path) -> None:
        (folder / PIECES).mkdir(exist_ok=True)
        for number in range(3):
            if not (folder / PIECES / f"{number}").is_file():
                made.append(number)
                write_whole(folder / PIECES / f"{number}", lambda partial: partial.write_text("x"))
        (folder / "result").write_text("x")

    def run() -> Finished:
        return run_stage(NAME, tmp_path, {}, compute, keeps=(PIECES,))

    with monkeypatch.context() as patch:
        own = getattr(cache, place)
        patch.setattr(cache, place, lambda *args: (own(*args), _raise(Kill())))
        if not signal:  # nothing cleans up behind a kill
            patch.setattr(Unfinished, "abandon", lambda self, whole: None)
        with pytest.raises(Kill):
            run()
    found = run()
    assert made == [0, 1, 2] and not _partials(tmp_path) and run().path == found.path
    assert sorted(path.name for path in found.path.iterdir()) == ["result", "stage.json"]


def _raise(error: BaseException) -> None:
    raise error
