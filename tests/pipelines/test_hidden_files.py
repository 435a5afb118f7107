"""What macOS, editors and notebooks leave beside files (._x.png, .ipynb_checkpoints) is nobody's input."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from segquant_bench.eval.metrics.images import list_numbered
from segquant_bench.eval.metrics.networks.clip import _fingerprint
from segquant_bench.hidden import visible
from segquant_bench.pipelines.config.searchpath import check_search_path, options
from segquant_bench.pipelines.data.layouts import read_dci
from segquant_bench.pipelines.loading.files import fingerprint, weight_files
from segquant_bench.pipelines.runtime.cache import run_stage
from tests.pipelines.conftest import Tiny
from tests.pipelines.layouts import write_dci


def _litter(folder: Path) -> None:
    """A hidden twin of every file, of other content, and a hidden folder with one."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
        checkpoints = path.parent / ".ipynb_checkpoints"
        checkpoints.mkdir(exist_ok=True)
        (checkpoints / path.name).write_bytes(b"old")


def _pictures(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for index in range(2):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{index:05d}.png")


def test_a_stage_and_those_who_read_it(tmp_path: Path) -> None:
    done = run_stage("generate", tmp_path, {}, _pictures)
    _litter(done.path)
    assert run_stage("generate", tmp_path, {}, _pictures).cached
    assert [path.name for path in list_numbered(done.path / "images", 2, "generated")] == ["00000.png", "00001.png"]


def test_a_model_and_its_weights(tiny: Tiny, tmp_path: Path) -> None:
    model = shutil.copytree(tiny.model, tmp_path / "model")
    before = fingerprint(model), weight_files(model / "transformer", None)
    _litter(model)
    assert (fingerprint(model), weight_files(model / "transformer", None)) == before
    shards = sorted((model / "transformer").glob("*.safetensors"))
    assert len(shards) > len(before[1])  # which a plain glob sees


def test_a_judge_s_folder(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    before = _fingerprint(tmp_path)
    _litter(tmp_path)
    assert _fingerprint(tmp_path) == before


def test_configurations(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "config.yaml").unlink()
    before = options([tmp_path])
    _litter(tmp_path)
    assert options([tmp_path]) == before and "mine" in before["model"]
    assert check_search_path([f"--config-dir={tmp_path}"]) is not None


def test_captions_of_dci(tmp_path: Path) -> None:
    write_dci(tmp_path)
    before = read_dci(tmp_path, "short", pictures=False)
    _litter(tmp_path)
    assert read_dci(tmp_path, "short", pictures=False).evaluation == before.evaluation


@pytest.mark.parametrize("name", ["._a", ".b/a", "c/.d/a"])
def test_every_part_of_a_path_counts(tmp_path: Path, name: str) -> None:
    assert visible([tmp_path / name, tmp_path / "b", tmp_path / "a"], tmp_path) == [tmp_path / "a", tmp_path / "b"]
