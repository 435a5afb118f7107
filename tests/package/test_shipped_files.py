"""Where shipped pipelines are found, and what is said where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from segquant_bench.pipelines.config import shipped
from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.config.schema import RunConfig, validate
from segquant_bench.pipelines.config.shipped import check_shipped
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading import files
from segquant_bench.pipelines.runtime import paths

OWN = ["model=tiny_random", "model.path=/model", "dataset=tiny", "dataset.archive=/shapes.zip"]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(paths.ZOO_VARIABLE, raising=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in an installed package, whose pipelines/zoo does not exist; returns where it would be."""
    for module in (paths, shipped, files):
        monkeypatch.setattr(module, "ZOO", tmp_path / "zoo")
    return tmp_path / "zoo"


def _run(*overrides: str) -> RunConfig:
    register()
    with initialize_config_dir(config_dir=str(paths.CONF), version_base="1.3"):
        return validate(compose("config", overrides=list(overrides)))


def test_a_clone_has_them() -> None:
    run = _run()
    assert run.model.path == str(paths.ZOO / "emoji_sd3") and Path(run.model.path).is_dir()
    check_shipped(run)


def test_the_variable_comes_first_and_the_clone_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "emoji_flux").mkdir()
    monkeypatch.setenv(paths.ZOO_VARIABLE, str(tmp_path))
    assert _run("model=emoji_flux").model.path == str(tmp_path / "emoji_flux")
    assert _run("model=emoji_sd3").model.path == str(paths.ZOO / "emoji_sd3")


def test_the_variable_serves_an_installed_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: Path
) -> None:
    for name in ("emoji_sd3", "emoji.zip", "emoji_clip"):
        (tmp_path / "clone" / name).mkdir(parents=True)
    monkeypatch.setenv(paths.ZOO_VARIABLE, str(tmp_path / "clone"))
    check_shipped(_run())


def test_without_them_a_sentence_says_what_is_missing_and_where_to_get_it(installed: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        check_shipped(_run())
    message = str(caught.value)
    for words in ("model.path (emoji_sd3)", "dataset.archive (emoji.zip)", "metric.backends.clip_path (emoji_clip)"):
        assert words in message
    assert "set SEGQUANT_ZOO=CLONE/pipelines/zoo, or set model.path" in message


def test_a_controlnet_is_named_too(installed: Path) -> None:
    with pytest.raises(PipelineError, match=r"model\.parts\.controlnet\.path \(emoji_sd3_canny/controlnet\)"):
        check_shipped(_run("model=emoji_sd3_canny"))


def test_a_run_that_needs_none_of_them_goes_on(installed: Path) -> None:
    check_shipped(_run(*OWN, "metric.metrics=[psnr,ssim]"))
    with pytest.raises(PipelineError, match=r"needs: metric\.backends\.clip_path \(emoji_clip\); clone"):
        check_shipped(_run(*OWN, "metric.metrics=[psnr,clip_score]"))


def test_the_plan_of_a_shipped_pipeline_says_the_same(installed: Path) -> None:
    with pytest.raises(PipelineError, match="the package does not contain it; clone SegQuant's repository and set"):
        files.read_index(installed / "emoji_sd3")


def test_a_variable_that_names_no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(paths.ZOO_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(PipelineError, match="SEGQUANT_ZOO=.*nowhere is no directory; set it to"):
        check_shipped(_run(*OWN))
