"""The structure of a calibration file: what `save_calibration` never writes is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import safetensors
from safetensors.torch import load_file, save_file

from segquant import QuantizationError
from segquant.deploy.diffusers import load_calibration, save_calibration
from segquant.deploy.diffusers.calibration import KEY
from tests.segquant.serialize.saved_net import is_sentence
from tests.segquant.serialize.test_method_fields import OTHERS, _places

BATCHES = [
    {"x": torch.zeros(2, 3), "more": [torch.ones(1), None, 1.5, "text"], "flag": True},
    (torch.zeros(2, 3), {"y": torch.ones(2)}),
    torch.zeros(2),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_calibration(BATCHES, tmp_path / "batches.safetensors")


def _trees(file: Path) -> Any:
    with safetensors.safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()[KEY])


def _changed(trees: Any, place: str, value: Any) -> Any:
    copied = json.loads(json.dumps(trees))
    inner = copied
    *way, key = place.split("/")
    for step in way:
        inner = inner[int(step) if isinstance(inner, list) else step]
    inner[int(key) if isinstance(inner, list) else key] = value
    return copied


def _same_form(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same_form(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same_form, one, other))
    return isinstance(one, torch.Tensor) == isinstance(other, torch.Tensor)


def test_every_field(file: Path) -> None:
    trees, tensors = _trees(file), load_file(file)
    assert all(map(_same_form, load_calibration(file), BATCHES))
    values = (*OTHERS, float("nan"), {"tensor": "0"}, {"tensor": 0}, {"value": []}, {"dict": []}, {"list": {}})
    refused = 0
    for place in (each.removeprefix("/") for each in _places(trees, "")):
        for value in values:
            save_file(tensors, file, {KEY: json.dumps(_changed(trees, place, value))})
            try:
                found = list(load_calibration(file))
            except QuantizationError as error:
                assert is_sentence(error) and str(file) in str(error), (place, value, error)
                refused += 1
                continue
            assert all(map(_same_form, found, BATCHES)), (place, value)
    assert refused > 300


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("0/dict/x", {"value": 1}, "do not name each of its tensors once"),
        ("0/dict/more/list/0", {"tensor": "0"}, "do not name each of its tensors once"),
        ("0/dict/more/list", [], "do not name each of its tensors once"),
        ("0/dict/more/list/2/value", float("inf"), "Infinity is no number"),
        ("0/dict/more/list/2/value", 10**400, "is no number"),
    ],
)
def test_what_is_not_written(file: Path, place: str, value: Any, words: str) -> None:
    save_file(load_file(file), file, {KEY: json.dumps(_changed(_trees(file), place, value))})
    with pytest.raises(QuantizationError, match=f"is damaged .*{words}"):
        list(load_calibration(file))


def test_numbers_that_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="batch 0, x: nan cannot be written to a calibration file"):
        save_calibration([{"x": float("nan")}], tmp_path / "batches.safetensors")
    assert not list(tmp_path.iterdir())
