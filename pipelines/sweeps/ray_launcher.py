"""`hydra/launcher=ray`: jobs as tasks of a Ray cluster, or of one that is started on this machine."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from segquant_bench.pipelines.bounds import within
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.sweeps.launch import LostJob, lost
from segquant_bench.pipelines.sweeps.task import Task

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds until the machine of a cluster answers."""


class RayLauncher(Launcher):
    """Jobs by Ray, which places them by what they ask for.

    Args:
        address: of a cluster that runs; None starts one on this machine and ends it afterwards.
        cpus: of one job, and its threads.
        gpus: of one job.
        parallel: how many jobs run at once, at most.
        init: further arguments of `ray.init`.
    """

    def __init__(
        self, address: str | None, cpus: float, gpus: float, parallel: int, init: Mapping[str, Any] | None = None
    ) -> None:
        within("hydra.launcher.parallel", parallel)
        within("hydra.launcher.cpus", cpus)
        within("hydra.launcher.gpus", gpus)
        self.address, self.cpus, self.gpus, self.parallel = address, cpus, gpus, parallel
        self.init: dict[str, Any] = {
            str(key): OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in (init or {}).items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        ray = self._connected()
        try:
            task = Task(self.context, self.config, self.function)
            jobs = [(number, list(overrides)) for number, overrides in enumerate(job_overrides, initial_job_idx)]
            return self._run(ray, task, jobs)
        finally:
            ray.shutdown()

    def _connected(self) -> Any:
        try:
            import ray  # 240 MB, which only this launcher needs
        except ImportError as error:
            raise PipelineError(
                "hydra/launcher=ray needs Ray, which is not installed; run pip install '.[ray]' in a clone of "
                "segquant, or choose hydra/launcher=joblib"
            ) from error
        if self.address is not None:
            _require_answer(self.address)
        try:
            own: dict[str, Any] = {"include_dashboard": False} if self.address is None else {}
            ray.init(address=self.address, log_to_driver=False, **own, **self.init)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(self.address, error) from error
        self._check_resources(ray)
        return ray

    def _check_resources(self, ray: Any) -> None:
        """Ray would wait for ever for what no machine has."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for key, kind, asked in (("cpus", "CPU", self.cpus), ("gpus", "GPU", self.gpus)):
            most = max((float(node.get(kind, 0)) for node in nodes), default=0.0)
            if asked > most:
                ray.shutdown()
                raise PipelineError(
                    f"hydra.launcher.{key}={asked:g} is more than any machine of the Ray cluster has, which is "
                    f"{most:g}; lower it"
                )

    def _run(self, ray: Any, task: Task, jobs: Sequence[tuple[int, list[str]]]) -> list[JobReturn]:
        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(_call)
        shared, waiting, running = ray.put(task), list(enumerate(jobs)), dict[Any, int]()
        found: dict[int, JobReturn] = {}
        while waiting or running:
            while waiting and len(running) < self.parallel:
                index, job = waiting.pop(0)
                running[remote.remote(shared, *job)] = index
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            found[running.pop(ended)] = self._result(ray, ended)
        return [found[index] for index in range(len(jobs))]

    def _result(self, ray: Any, ended: Any) -> JobReturn:
        try:
            found: JobReturn = ray.get(ended)
            return found
        except ray.exceptions.RayTaskError:  # a fault of the program
            raise
        except ray.exceptions.RayError as error:
            log.warning("a job was lost: %s", one_line(error))
            return lost(LostJob(f"its process was lost ({type(error).__name__} of Ray: killed, or with its machine)"))


def _require_answer(address: str) -> None:
    """Ray itself waits for minutes where nobody listens."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and the like, which Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> PipelineError:
    return PipelineError(
        f"no Ray cluster answers at hydra.launcher.address={address} ({one_line(error)}); start one with `ray start "
        "--head`, or set hydra.launcher.address=null for one on this machine"
    )


def _call(task: Task, number: int, overrides: list[str]) -> JobReturn:
    return task(number, overrides)
