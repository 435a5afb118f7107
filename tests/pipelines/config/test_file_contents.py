"""The configuration's hash knows files by what they hold."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image

from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.sections import BackendsConfig
from segquant_bench.pipelines.runtime.paths import zoo_path
from segquant_bench.pipelines.stages.benchmark import open_run
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared.contents import file_contents, network_digests
from tests.pipelines.conftest import Tiny, compose_config


def _run(tiny: Tiny, *overrides: str) -> Run:
    return open_run(validate(compose_config([*tiny.overrides(Path("cache")), *overrides])))


def _hash(run: Run) -> str:
    return config_hash(run.config, "model", run.dataset.record, file_contents(run))


def _pictures(folder: Path, colour: str) -> Path:
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4), colour).save(folder / "a.png")
    return folder


def test_real_pictures_of_one_folder_name(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "evaluation.txt").write_text("x\ny")
    (tmp_path / "calibration.txt").write_text("\n".join("abcdefgh"))
    files = [f"dataset.{name}_prompts={tmp_path}/{name}.txt" for name in ("evaluation", "calibration")]

    def hashed(folder: Path, metrics: str) -> str:
        settings = ["dataset.archive=null", "dataset.size=null", *files, f"dataset.real={folder}"]
        return _hash(_run(tiny, *settings, f"metric.metrics=[{metrics}]"))

    red, moved, blue = (
        _pictures(tmp_path / name / "real", colour) for name, colour in (("1", "red"), ("2", "red"), ("3", "blue"))
    )
    assert hashed(red, "fid_gt") == hashed(moved, "fid_gt") != hashed(blue, "fid_gt")
    assert hashed(red, "psnr") == hashed(blue, "psnr"), "no number depends on pictures that nothing is compared with"


def test_real_pictures_of_an_archive_count(tiny: Tiny) -> None:
    assert file_contents(_run(tiny, "metric.metrics=[fid_gt]")).keys() == {"real"}
    assert file_contents(_run(tiny)) == {}


@pytest.mark.parametrize(
    ("key", "name"), [("inception", "inception-2015-12-05.pt"), ("clip_path", "open_clip_model.safetensors")]
)
def test_networks_by_folder_and_by_file(tiny: Tiny, tmp_path: Path, key: str, name: str) -> None:
    run, found = _run(tiny), []

    def hashed(path: Path) -> str:
        backends = dataclasses.replace(run.config.metric.backends, **{key: str(path)})
        metric = dataclasses.replace(run.config.metric, backends=backends)
        return _hash(open_run(dataclasses.replace(run.config, metric=metric)))

    for place, content in (("1", b"a"), ("2", b"a"), ("3", b"b")):
        folder = tmp_path / place / "network"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        (folder / "open_clip_config.json").write_text("{}")
        hashes = [hashed(path) for path in (folder, folder / name)]
        stage = network_digests(BackendsConfig(**{key: str(folder)}))
        found.append((*hashes, stage[key]))
    assert found[0] == found[1] and all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_a_folder_of_no_network_is_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the whole disk; it is refused later."""
    monkeypatch.setattr("segquant_bench.pipelines.runtime.digests.tree_digest", lambda *_: pytest.fail("walked"))
    for key in ("inception", "clip_path"):
        assert str(tmp_path) in network_digests(BackendsConfig(**{key: str(tmp_path)}))[key]


def test_shipped_files_count_by_name_as_they_did() -> None:
    for key, name in (("clip_path", "emoji_clip"), ("inception", "emoji_clip")):
        run = open_run(validate(compose_config([f"metric.backends.{key}={zoo_path(name)}"])))
        assert file_contents(run) == {}


def test_a_variant_is_another_model(tiny: Tiny, tmp_path: Path) -> None:
    """One folder can hold the weights of several."""
    shutil.copytree(tiny.model, tmp_path / "model")
    for file in (tmp_path / "model").rglob("*.safetensors"):
        shutil.copy(file, file.with_name(f"{file.stem}.fp16.safetensors"))
    paths = [f"model.path={tmp_path}/model"]
    runs = [_run(tiny, *paths, *more) for more in ([], ["model.variant=fp16"], ["model.variant=fp16"])]
    assert runs[0].fingerprint != runs[1].fingerprint == runs[2].fingerprint
    assert runs[0].key("reference") != runs[1].key("reference")
