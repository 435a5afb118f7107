from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny import tiny_dataset, tiny_sd3_pipeline


@dataclass(frozen=True)
class Tiny:
    """Where the tiny pipeline and the tiny data set of this test session lie."""

    model: Path
    archive: Path

    def overrides(self, cache: Path) -> list[str]:
        """A run of seconds: four pictures, two metrics that need no network."""
        return [
            "model=tiny_random",
            f"model.path={self.model}",
            "dataset=tiny",
            f"dataset.archive={self.archive}",
            "calibration.prompts=4",
            "calibration.held_out=2",
            "calibration.steps_per_prompt=2",
            "metric.metrics=[psnr,ssim]",
            "metric.bootstrap=20",
            "logger=none",
            f"cache={cache}",
        ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    return Tiny(tiny_sd3_pipeline(root / "model"), tiny_dataset(root / "shapes.zip"))


@pytest.fixture(scope="session")
def finished_cache(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which reference, calibration and graph of the tiny run are finished; copy, never write to it."""
    from segquant_bench.pipelines.config.resolvers import register
    from segquant_bench.pipelines.config.schema import validate
    from segquant_bench.pipelines.stages.benchmark import open_run

    register()
    root = tmp_path_factory.mktemp("finished")
    benchmark = open_run(validate(compose_config(tiny.overrides(root))))
    benchmark.stage("reference")
    benchmark.stage("calibrate")
    benchmark.stage("graph")
    return root


@pytest.fixture
def cache(finished_cache: Path, tmp_path: Path) -> Path:
    """This test's own cache, with reference, calibration and graph finished."""
    shutil.copytree(finished_cache, tmp_path / "cache")
    return tmp_path / "cache"


def compose_config(overrides: list[str]):
    """The configuration of a command line."""
    from hydra import compose, initialize_config_dir

    from segquant_bench.pipelines.config.resolvers import register
    from segquant_bench.pipelines.main import CONF

    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", overrides=overrides)


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, stderr, and its folder."""

    code: int
    err: str
    folder: Path

    @property
    def sentence(self) -> str:
        """The last line on stderr."""
        return self.err.strip().splitlines()[-1]


Command = Callable[..., Outcome]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Call `segquant` in this process, in a folder of its own."""
    from hydra.core.global_hydra import GlobalHydra

    from segquant_bench.pipelines.main import main
    from segquant_bench.pipelines.results.sweep import SweepFolder

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments: str) -> Outcome:
        folder = tmp_path / "run"
        sweep = "-m" in arguments
        place = f"hydra.sweep.dir={folder}" if sweep else f"hydra.run.dir={folder}"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["segquant", *arguments, place])
        monkeypatch.setattr(SweepFolder, "current", None)
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as stopped:
            main()
        return Outcome(int(stopped.value.code or 0), capfd.readouterr().err, folder)

    yield call
    GlobalHydra.instance().clear()
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
