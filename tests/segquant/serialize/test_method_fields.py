"""What a manifest says of the method, its segments and its plan: every known field is of its type, or is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segquant import QuantizationError, presets, quantize_with_outcome_, read_outcome, save_quantized
from segquant.serialize.manifest import read_manifest
from tests.segquant.serialize.saved_net import is_sentence
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches

PLAN = {"layer": "up", "choice": {"rank": 2}, "error": 0.1, "bytes": 9, "operations": 1.0, "plain": None, "gain": 0.5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    block, method = Block(), presets.segquant_a("w4a8", rank=4, alpha=0.5)
    outcome = quantize_with_outcome_(block, method, block_batches(5, seed=1), BLOCK_SEGMENTS)
    return save_quantized(block, folder, outcome)


def _changed(saved: Path, folder: Path, place: str, value: Any) -> Path:
    manifest = json.loads((saved / "quantized.json").read_text()) | {"plan": [dict(PLAN)]}
    *way, key = place.split("/")
    inner: Any = manifest
    for step in way:
        inner = inner[int(step) if isinstance(inner, list) else step]
    inner[key] = value
    (folder / "quantized.json").write_text(json.dumps(manifest))
    return folder


WRONG = [
    ("method/scheme/weight", 1e308), ("method/scheme/weight/dtype", 3), ("method/scheme/input/dynamic", "yes"),
    ("method/scheme", None), ("method/cuts", "graph"), ("method/cuts/negative", 1), ("method/cuts/seglinear", 1),
    ("method/optimizer", "svd"), ("method/optimizer/name", 1), ("method/rotation", []), ("method/ranges", None),
    ("method/name", 1), ("method/seed", "0"), ("method/seed", True), ("method/bias_correction", 0),
    ("method/headroom", []), ("method/targets/skip", "up"), ("method/budget", 1.0), ("method/spare", []),
    ("method/version", "2"), ("segments/ada/output", 4), ("segments/ada/activation", []), ("plan/0/error", "x"),
    ("plan/0/layer", None), ("plan/0/choice", []),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_field_of_another_type_is_named(saved: Path, tmp_path: Path, place: str, value: Any) -> None:
    with pytest.raises(QuantizationError) as caught:
        read_manifest(_changed(saved, tmp_path, place, value))
    named = place.replace("/", ".").replace("plan.0", "plan[0]")
    assert repr(named) in str(caught.value) and is_sentence(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999"])
def test_numbers_that_are_none(saved: Path, tmp_path: Path, number: str) -> None:
    file = _changed(saved, tmp_path, "method/cuts/negative", 0.125) / "quantized.json"
    file.write_text(file.read_text().replace("0.125", number, 1))
    with pytest.raises(QuantizationError, match=f"is no valid JSON .*{number} is no number of JSON"):
        read_manifest(tmp_path)


def test_what_is_not_there_or_newer_is_right(saved: Path, tmp_path: Path) -> None:
    whole = _changed(saved, tmp_path, "method/of_tomorrow", {"a": [None]})
    read_manifest(whole)
    manifest = json.loads((saved / "quantized.json").read_text())
    for key in ("headroom", "spare", "budget", "gram_shrinkage"):
        manifest["method"].pop(key)
    (tmp_path / "quantized.json").write_text(json.dumps(manifest | {"tomorrow": 1}))
    assert read_outcome(tmp_path) is not None


def test_numbers_that_could_not_be_read_again_are_not_saved(tmp_path: Path) -> None:
    block = Block()
    outcome = quantize_with_outcome_(block, presets.rtn("w8a8_tensor"), block_batches(2, seed=1))
    with pytest.raises(QuantizationError, match="extra cannot be written as JSON"):
        save_quantized(block, tmp_path / "model", outcome, extra={"loss": float("inf")})
    block.config = {"limit": float("inf"), "deep": [float("nan"), 1.0]}
    type(block).from_config = classmethod(lambda cls, config: cls())
    try:
        save_quantized(block, tmp_path / "model", outcome)
    finally:
        del type(block).from_config
    assert read_manifest(tmp_path / "model")["config"] == {"limit": "inf", "deep": ["nan", 1.0]}
