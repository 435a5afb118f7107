"""What a manifest says of the method, its segments and its plan: every known field is of its type, or is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segquant import Method, QuantizationError, presets, quantize_with_outcome_, read_outcome, save_quantized
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


@pytest.fixture(scope="module")
def solved(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With parts that have many settings."""
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("solved") / "model"))
    manifest = json.loads((folder / "quantized.json").read_text())
    method = Method.of("all", "w4a8", optimizer="svd", rank=4, calibrator="gptq", ranges="mse", rotate=True,
                       overrides={"up": {"rank": 2}}, skip=["x.*"])  # fmt: skip
    (folder / "quantized.json").write_text(json.dumps(manifest | {"method": method.to_dict()}))
    return folder


def _changed(saved: Path, folder: Path, place: str, value: Any) -> Path:
    manifest = json.loads((saved / "quantized.json").read_text()) | {"plan": [dict(PLAN)]}
    *way, key = place.split("/")
    inner: Any = manifest
    for step in way:
        inner = inner[int(step) if isinstance(inner, list) else step]
    inner[int(key) if isinstance(inner, list) else key] = value
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


PARTS = [
    ("method/optimizer/rank", "4"), ("method/optimizer/alpha", None), ("method/optimizer/alpha_none", 1),
    ("method/optimizer/rank_limit", 1.5), ("method/calibrator/damp", "0.01"), ("method/calibrator/act_order", 0),
    ("method/ranges/name", None), ("method/spare", {"percentile": "x"}), ("method/spare", {"rank": "x"}),
    ("method/spare", {"negative": 3}), ("method/targets/overrides", [["up", {"rank": "x"}]]),
    ("method/targets/overrides", [["up", {"skip": True}], ["down", {"bias_correction": 1}]]),
    ("plan/0/choice", {"rank": "x"}), ("plan/0/choice", {"optimizer": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), PARTS)
def test_fields_of_registered_parts(solved: Path, tmp_path: Path, place: str, value: Any) -> None:
    with pytest.raises(QuantizationError, match="it has .* as its 'method|it has .* as its 'plan") as caught:
        read_manifest(_changed(solved, tmp_path, place, value))
    assert is_sentence(caught.value)
    read_manifest(_changed(solved, tmp_path, "method/name", "same"))


@pytest.mark.parametrize("place", ["optimizer", "calibrator", "ranges"])
def test_parts_that_are_not_registered(solved: Path, tmp_path: Path, place: str) -> None:
    """The model needs none of them; the outcome does."""
    read_manifest(_changed(solved, tmp_path, f"method/{place}", {"name": "of_tomorrow", "field": []}))
    with pytest.raises(QuantizationError, match="'of_tomorrow', which is not registered here; import") as caught:
        read_outcome(tmp_path)
    assert is_sentence(caught.value)


OTHERS: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**400, 0.5, 1e308, "", "x", [], [1], [None], [["a", 1]], {}, {"a": 1}, {"name": "x"},
)  # fmt: skip


def _places(values: Any, way: str) -> Iterator[str]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield f"{way}/{key}"
        yield from _places(value, f"{way}/{key}")


def _at(values: Any, place: str) -> Any:
    for step in place.split("/"):
        values = values[int(step) if isinstance(values, list | tuple) else step]
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("version", [1, 2])
def test_every_field_with_values_of_every_type(solved: Path, tmp_path: Path, version: int) -> None:
    """A sentence, or an outcome that says the same; never a traceback, never another value without a word."""
    if version == 1:
        old = json.loads((Path(__file__).parents[1] / "saved_v1" / "quantized.json").read_text())
        solved = tmp_path / "old"
        solved.mkdir()
        (solved / "quantized.json").write_text(json.dumps(old))
    else:
        old = json.loads((solved / "quantized.json").read_text())
    refused = 0
    for place in _places(old["method"], "method"):
        for value in OTHERS:
            _changed(solved, tmp_path, place, value)
            manifest = json.loads((tmp_path / "quantized.json").read_text())
            del manifest["plan"]
            (tmp_path / "quantized.json").write_text(json.dumps(manifest))
            try:
                outcome = read_outcome(tmp_path)
            except QuantizationError as error:
                assert is_sentence(error), (place, value, error)
                refused += 1
                continue
            assert outcome is not None
            if version == 2 and value != {}:
                found = _at(outcome.to_dict(), place)
                assert found == value and type(found) is type(value) or value is None, (place, value, found)
    assert refused > 200
