"""What an exported file says of itself, with values of every type in every field: a sentence, or the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from segquant import QuantizationError, export_onnx, presets, quantize_
from segquant.deploy.onnx.manifest import KEY, Dimension, Manifest
from segquant.deploy.run import load_exported
from segquant.deploy.run.denoiser import ExportedDenoiser
from tests.segquant.serialize.saved_net import is_sentence
from tests.segquant.support import Block, block_batches

GONE = object()
VALUES: tuple[Any, ...] = (
    GONE, None, True, 0, -1, 3, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x", "float32", [], [1],
    [None], {}, {"a": 1},
)  # fmt: skip


def _call() -> dict[str, Any]:
    return dict(block_batches(1, seed=2)[0])


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "out"
    export_onnx(quantize_(Block(), presets.rtn("w8a8_dynamic"), []), folder, (), _call())
    return folder


@pytest.fixture(scope="module")
def running(export: Path) -> ExportedDenoiser:
    return load_exported(export)


@pytest.fixture(scope="module")
def expected(running: ExportedDenoiser) -> Tensor:
    return running(**_call())[0]


def _places(values: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield (*way, key)
        yield from _places(value, (*way, key))


def _with(values: Any, place: tuple[Any, ...], value: Any) -> str:
    copied = json.loads(json.dumps(values))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return json.dumps(copied)


def test_every_field(running: ExportedDenoiser, expected: Tensor) -> None:
    values = json.loads(running.manifest.dumped())
    refused = taken = 0
    for place in _places(values):
        if place[0] in ("config", "layers") and len(place) > 2:
            continue
        for value in VALUES:
            try:
                module = ExportedDenoiser(running.engine, Manifest.loaded(_with(values, place, value), "model.onnx"))
                found = module(**_call())[0]
            except QuantizationError as error:
                assert is_sentence(error), (place, value, error)
                refused += 1
                continue
            assert torch.equal(found, expected), (place, value)
            taken += 1
    assert refused > 800 and taken > 50


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("outputs",), []), (("outputs",), ["a", "a"]), (("inputs", 0, "dimensions", 0, "high"), -1),
        (("inputs", 0, "dimensions", 2, "high"), 9), (("inputs", 0, "dimensions", 0, "name"), ""),
        (("inputs", 0, "dimensions", 0, "low"), -1), (("inputs", 0, "dimensions", 0, "low"), 2**63),
        (("config", "depth"), float("nan")), (("config", "depth"), 10**400), (("schema",), True),
        (("schema",), 1.0), (("data",), -1), (("every_cpu",), 1), (("constants",), []), (("parameters",), [1]),
    ],
)  # fmt: skip
def test_fields_that_no_export_has(running: ExportedDenoiser, place: tuple[Any, ...], value: Any) -> None:
    text = _with(json.loads(running.manifest.dumped()), place, value)
    with pytest.raises(QuantizationError, match=r"^model\.onnx (is damaged|has schema)") as caught:
        Manifest.loaded(text, "model.onnx")
    assert is_sentence(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("inputs", 0, "name"), "other", "x|other"), (("inputs", 0, "dtype"), "int64", "x"),
        (("inputs", 0, "dimensions"), [], "x"), (("inputs", 1), GONE, "condition"),
        (("outputs",), ["a", "b"], "its outputs"),
    ],
)  # fmt: skip
def test_what_the_graph_has_not(export: Path, tmp_path: Path, place: tuple[Any, ...], value: Any, words: str) -> None:
    folder = Path(shutil.copytree(export, tmp_path / "out"))
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    entry = next(entry for entry in model.metadata_props if entry.key == KEY)
    entry.value = _with(json.loads(entry.value), place, value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        QuantizationError, match=f"is damaged: what it says of ({words}) is not what its graph"
    ) as caught:
        load_exported(folder)
    assert is_sentence(caught.value)


def test_dimensions() -> None:
    assert Dimension("batch", 1).allows(7) and Dimension(None, 4, 4).allows(4)
    for wrong in ((None, 1, 2), ("", 1), ("b", 3, 2), ("b", -1), ("b", 1, 2**64)):
        with pytest.raises(QuantizationError, match="Dimension: "):
            Dimension(*wrong)
