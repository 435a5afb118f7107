"""Launchers: jobs in processes of their own, so many at once, on so many threads; a lost one is told of."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import OmegaConf, open_dict

from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import CONF
from segquant_bench.pipelines.sweeps.launch import LostJob, failure_of
from segquant_bench.pipelines.sweeps.task import threads_per_job
from tests.pipelines.conftest import Command
from tests.pipelines.sweeps.jobs import job

ROOT = Path(__file__).resolve().parents[3]
RAY_SETTINGS = {
    "agent_register_timeout_ms": "300000", "raylet_start_wait_time_s": "300", "worker_register_timeout_seconds": "300",
    "enable_metrics_collection": "0", "USAGE_STATS_ENABLED": "0",
}  # fmt: skip
"""Patience, since busy machines start Ray slowly, and nothing that the tests do not need."""
RAY_CLUSTER = ("hydra/launcher=ray", "hydra.launcher.cpus=1", "+hydra.launcher.init.num_cpus=2",
               "+hydra.launcher.init.object_store_memory=80000000")  # fmt: skip
RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name, value in RAY_SETTINGS.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before


def _launched(root: Path, seeds: list[int], *settings: str) -> list[JobReturn]:
    """The jobs of these seeds, whose folders are their numbers."""
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        asked = [*settings, f"hydra.sweep.dir={root}", "hydra.sweep.subdir=${hydra.job.num}", "hydra.mode=MULTIRUN"]
        config = compose("config", overrides=asked, return_hydra_config=True)
        OmegaConf.set_readonly(config.hydra, False)
        with open_dict(config):
            config.hydra.runtime.cwd = str(root)
            config.hydra.job_logging = config.hydra.hydra_logging = {"version": 1, "root": None}
        HydraConfig.instance().set_config(config)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)
        return list(launcher.launch([[f"seed={seed}"] for seed in seeds], initial_job_idx=0))


def _check(root: Path, results: list[JobReturn], threads: str) -> None:
    """Seeds 0, 1, 2, 3, 4: the second was killed, the third failed; at most two ran at once."""
    errors = [failure_of(result) for result in results]
    assert isinstance(errors[1], LostJob) and "lost" in str(errors[1])
    assert isinstance(errors[2], ValueError) and str(errors[2]) == "a sentence"
    ended = {index: result for index, result in enumerate(results) if errors[index] is None}
    assert {index: result.return_value for index, result in ended.items()} == {0: 0, 3: 30, 4: 40}
    assert all(result.status is JobStatus.COMPLETED for result in ended.values())
    spans = [(root / str(index) / "span").read_text().split() for index in ended]
    assert {span[2] for span in spans} == {threads}
    moments = [float(begun) for begun, _, _ in spans]
    assert max(sum(float(b) <= moment < float(e) for b, e, _ in spans) for moment in moments) <= 2


def test_submitit_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)  # that of a killed job is never there
    results = _launched(
        tmp_path,
        [0, 1, 2, 3, 4],
        "hydra/launcher=submitit_local",
        "hydra.launcher.threads=3",
        "+hydra.launcher.poll=0.05",
    )
    _check(tmp_path, results, "3")


def test_submitit_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By stand-ins for Slurm's programs."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sbatch", "srun", "sacct"):
        script = ROOT / "tests" / "pipelines" / "sweeps" / "fake_slurm.py"
        (tools / name).write_text(f'#!/bin/bash\nexec "{sys.executable}" "{script}" {name} "$@"\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "bin"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)  # how long a result may be on its way
    monkeypatch.setattr("submitit.slurm.slurm.SlurmJob.watcher._delay_s", 1)
    results = _launched(
        tmp_path / "sweep", [0, 1, 2, 3, 4], "hydra/launcher=submitit_slurm", "hydra.launcher.parallel=2",
        "hydra.launcher.slurm_partition=gpu", "+hydra.launcher.slurm_additional_parameters.mail_user=somebody",
    )  # fmt: skip
    _check(tmp_path / "sweep", results, "3")
    (script,) = (tmp_path / "sweep" / ".submitit").rglob("*submission.sh")
    text = script.read_text()
    for line in ("--array=0-4%2", "--partition=gpu", "--cpus-per-task=8", "--signal=USR2@120", "--mail-user=somebody"):
        assert line in text
    assert "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK" in text and "--time=240" in text


@RAY
def test_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _check(tmp_path, _launched(tmp_path, [0, 1, 2, 3, 4], *RAY_CLUSTER), "1")


@RAY
@pytest.mark.slow
def test_what_no_machine_of_ray_has_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="hydra.launcher.gpus=64 is more than any machine"):
        _launched(tmp_path, [0], *RAY_CLUSTER, "hydra.launcher.gpus=64")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_ray_that_nobody_runs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    if importlib.util.find_spec("ray") is None:
        monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))  # it is not asked
    with pytest.raises(PipelineError, match=f"no Ray cluster answers at hydra.launcher.address={address}"):
        _launched(tmp_path, [0], "hydra/launcher=ray", f"hydra.launcher.address='{address}'")


def test_without_ray(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = command("-m", "hydra/launcher=ray", "quantizer=rtn,mse", "logger=none")
    assert outcome.code == 1 and "pip install '.[ray]' in a clone of segquant" in outcome.sentence


@pytest.mark.parametrize("setting", ["submitit_local", "submitit_slurm", "ray"])
def test_no_job_at_once(command: Command, setting: str) -> None:
    outcome = command("-m", f"hydra/launcher={setting}", "hydra.launcher.parallel=0", "quantizer=rtn,mse")
    assert outcome.code == 1
    assert "hydra.launcher.parallel=0 is out of range; it must be from 1 to 10000" in outcome.sentence


def test_threads_are_shared_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 9)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert threads_per_job(None, 2) == {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    assert threads_per_job(None, 100)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_per_job(None, 2) == {"MKL_NUM_THREADS": "4"}
    assert threads_per_job(5, 2) == {"OMP_NUM_THREADS": "5", "MKL_NUM_THREADS": "5"}


def test_defaults_start_few_jobs() -> None:
    register()
    for name, most in (("joblib", 2), ("submitit_local", 2), ("submitit_slurm", 8), ("ray", 8)):
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            settings = compose("config", overrides=[f"hydra/launcher={name}"], return_hydra_config=True).hydra.launcher
        assert settings["n_jobs" if name == "joblib" else "parallel"] == most
