"""Exports with other bytes than were written, of the right size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

import onnx

from segquant import QuantizationError, export_onnx, presets, quantize_
from segquant.deploy.onnx.manifest import DATA, KEY, MODEL
from segquant.deploy.run import load_exported
from tests.segquant.deploy.support import traced_once
from tests.segquant.serialize.saved_net import is_sentence

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    torch.manual_seed(0)
    model = quantize_(nn.Sequential(nn.Linear(64, 64)), presets.rtn("w8a8"), [(X,)], {})
    with traced_once():
        for engine in ("ort", "openvino"):
            for apart in (False, True):
                export_onnx(model, folder / f"{engine}-{apart}", (X,), profile=engine, external_data=apart)
    return folder


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _inside(path: Path) -> None:
    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = bytes(len(weights.raw_data))
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(
    ("apart", "file", "change"), [(True, DATA, _zeros), (True, DATA, _flipped), (False, MODEL, _inside)]
)
def test_other_bytes(
    exports: Path, tmp_path: Path, engine: str, apart: bool, file: str, change: Callable[[Path], None]
) -> None:
    source = exports / f"{engine}-{apart}"
    load_exported(source, engine, threads=1)(X)
    folder = Path(shutil.copytree(source, tmp_path / "out"))
    change(folder / file)
    with pytest.raises(QuantizationError, match=rf"{file} is not as it was written \(its sha256") as caught:
        load_exported(folder, engine)
    assert is_sentence(caught.value)


def test_exports_of_before_have_none(exports: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exports / "ort-True", tmp_path / "out"))
    model = onnx.load(folder / MODEL, load_external_data=False)
    entry = next(entry for entry in model.metadata_props if entry.key == KEY)
    values = json.loads(entry.value)
    assert len(values.pop("sha256")) == len(values.pop("data_sha256")) == 64
    entry.value = json.dumps(values)
    (folder / MODEL).write_bytes(model.SerializeToString())
    assert torch.equal(load_exported(folder)(X).output, load_exported(exports / "ort-True")(X).output)


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_links(exports: Path, tmp_path: Path, engine: str) -> None:
    """As in the cache of Hugging Face."""
    folder = Path(shutil.copytree(exports / f"{engine}-True", tmp_path / "out"))
    (folder / DATA).rename(tmp_path / "blob")
    (folder / DATA).symlink_to(tmp_path / "blob")
    with pytest.raises(QuantizationError, match=rf"{DATA} is a link out of its folder, .* \(cp -rL\)$") as caught:
        load_exported(folder, engine)
    assert is_sentence(caught.value)
    (tmp_path / "whole").symlink_to(exports / f"{engine}-True")
    assert load_exported(tmp_path / "whole", engine, threads=1)(X).output.shape == (2, 64)
