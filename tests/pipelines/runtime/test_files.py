"""The two writers of whole files, the library's and the judge's, keep the same promises."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import segquant
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


@pytest.mark.parametrize("mask, expected", [(0o027, 0o640), (0o002, 0o664)])
def test_tensors_are_for_everyone_whom_the_umask_lets_in_and_the_same_bytes(
    mask: int, expected: int, tmp_path: Path
) -> None:
    metadata = {f"key {letter}": letter for letter in "zyxwvuts€"}
    before, paths = os.umask(mask), [tmp_path / name for name in ("a", "b", "c", "d")]
    try:
        for path in paths[:2]:
            library.write_tensors(path, {"y": torch.ones(2), "x": torch.zeros(3)})
        for path in paths[2:]:
            judge.save_tensors(path, {"y": np.ones(2), "x": np.zeros(3)}, metadata)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in paths} == {expected}
    assert paths[0].read_bytes() == paths[1].read_bytes() and paths[2].read_bytes() == paths[3].read_bytes()
    with safe_open(paths[2], "numpy") as file:
        assert file.metadata() == metadata and file.get_tensor("x").tolist() == [0, 0, 0]


def test_a_saved_model_is_for_everyone_whom_the_umask_lets_in(tmp_path: Path) -> None:
    model = segquant.quantize_(torch.nn.Sequential(torch.nn.Linear(4, 4)), segquant.presets.rtn("w8a8_dynamic"), [])
    before = os.umask(0o007)
    try:
        for name in ("first", "first", "second"):
            segquant.save_quantized(model, tmp_path / name, extra={"b": 1, "a": 2})
    finally:
        os.umask(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    assert (tmp_path / "first").stat().st_mode & 0o777 == 0o770
    for path in (tmp_path / "first").iterdir():
        assert path.stat().st_mode & 0o777 == 0o660
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    with pytest.raises(segquant.QuantizationError, match="extra cannot be written as JSON: Object of type object"):
        segquant.save_quantized(model, tmp_path / "third", extra={"x": object()})
