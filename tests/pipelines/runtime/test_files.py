"""The two writers of whole files, the library's and the judge's, keep the same promises."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from segquant import files as library
from segquant_bench.eval import files as judge

JSON = pytest.mark.parametrize("write", [library.write_json, judge.save_json], ids=["library", "judge"])
TEXT = pytest.mark.parametrize("write", [library.write_text, judge.save_text], ids=["library", "judge"])


@JSON
def test_json_is_whole_or_as_before(write: Callable[[Path, object], None], tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.json"
    write(path, {"x": 1})
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            write(path, {"x": value})
    assert json.loads(path.read_text()) == {"x": 1} and path.read_text().endswith("}\n")
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


@TEXT
def test_an_interrupt_leaves_what_was_there(
    write: Callable[[Path, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write(path, "before é\n")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for module, name in ((os, "replace"), (Path, "replace")):
        monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, "after")
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == "before é\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
    write(path, "after")
    assert path.read_text() == "after"


@TEXT
def test_files_are_for_everyone_whom_the_umask_lets_in(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "a.txt", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
