"""A folder belongs to one job of one run, wherever the job runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import CONF
from segquant_bench.pipelines.results.sweep import LOCK, SweepFolder, claimed
from tests.pipelines.conftest import Command


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SweepFolder]:
    """A sweep that began, in its folder `sweep`, with `sweep/a` for a job."""
    monkeypatch.setattr(SweepFolder, "current", None)
    monkeypatch.setattr(SweepFolder, "sweep", "")
    before = HydraConfig.instance().cfg
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        asked = [f"hydra.sweep.dir={tmp_path}/sweep", "hydra.mode=MULTIRUN", "hydra.job.num=3", "hydra.job.id=x"]
        config = compose("config", overrides=asked, return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    with open_dict(config):
        config.hydra.runtime.cwd = str(tmp_path)
    HydraConfig.instance().set_config(config)
    (tmp_path / "sweep" / "a").mkdir(parents=True)
    callback = SweepFolder()
    callback.on_multirun_start(config)
    yield callback
    HydraConfig.instance().cfg = before


def test_jobs_of_two_processes(sweep: SweepFolder, tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "a"
    for number in range(2):
        in_another: SweepFolder = pickle.loads(pickle.dumps(sweep))
        SweepFolder.sweep = ""
        in_another.on_job_start(HydraConfig.instance().cfg)
        if number == 0:
            with claimed(folder):
                pass
            continue
        with pytest.raises(PipelineError, match=r"another job's folder already; put \$\{hydra.job.num\} into"):
            claimed(folder).__enter__()


def test_a_later_sweep_takes_the_folder_over(sweep: SweepFolder, tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "a"
    for _ in range(2):
        sweep.on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}}, "report": False}))
        sweep.on_job_start(HydraConfig.instance().cfg)
        with claimed(folder):
            pass
    assert len(list(folder.glob(".sweep-*"))) == 1


def test_outside_of_the_sweep(sweep: SweepFolder, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"leads out of the sweep's folder.*leave \.\. out"):
        claimed(tmp_path / "b").__enter__()


def test_a_folder_that_another_run_writes_into(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    with FileLock(tmp_path / "run" / LOCK):
        outcome = command("logger=none", f"model.path={tmp_path}/nowhere")
    assert outcome.code == 1 and "another run writes into" in outcome.sentence
    assert not (outcome.folder / "failure.json").exists(), "the other run's"


def test_a_refused_job_stands_in_log_and_report(command: Command, tmp_path: Path) -> None:
    arguments = ["-m", "logger=none", f"model.path={tmp_path}/nowhere", "seed=1,2", "hydra.sweep.subdir=a"]
    outcome = command(*arguments)
    assert outcome.code == 1
    told = json.loads((outcome.folder / "refused_1" / "failure.json").read_text())
    assert "another job's folder already" in told["message"] and "seed=2" in told["overrides"]
    assert "another job's folder already" in (outcome.folder / "a" / "segquant.log").read_text()
    assert "nowhere does not exist" in json.loads((outcome.folder / "a" / "failure.json").read_text())["message"]


def _config() -> DictConfig:
    return OmegaConf.create({**HydraConfig.instance().cfg, "report": True})


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_folders_named_by_the_time_are_one_process_s_each(sweep: SweepFolder, tmp_path: Path, kind: str) -> None:
    config = _config()
    start = {"run": SweepFolder().on_run_start, "sweep": SweepFolder().on_multirun_start}[kind]
    found = []
    for _ in range(3):
        with read_write(config.hydra):
            config.hydra[kind].dir = f"{tmp_path}/made/2026-01-31_23-59-58_rtn_w8a8"
        start(config=config)
        found.append(Path(config.hydra[kind].dir).name)
    assert found == [f"2026-01-31_23-59-58_rtn_w8a8{end}" for end in ("", "-2", "-3")]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(found)
    if kind == "sweep":
        assert SweepFolder.current == (tmp_path / "made" / found[-1], True)


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_folder_that_was_named_is_used_again(sweep: SweepFolder, tmp_path: Path, kind: str) -> None:
    config = _config()
    with read_write(config.hydra):
        config.hydra[kind].dir = f"{tmp_path}/sweep"
    for _ in range(2):
        {"run": SweepFolder().on_run_start, "sweep": SweepFolder().on_multirun_start}[kind](config=config)
        assert config.hydra[kind].dir == f"{tmp_path}/sweep"
