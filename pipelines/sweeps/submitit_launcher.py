"""`hydra/launcher=submitit_local` and `submitit_slurm`.

Hydra's own plugin for submitit starts every local job at once, and gives up the whole sweep when one job is lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hydra.core.utils import JobReturn, configure_log, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from segquant_bench.pipelines.bounds import within
from segquant_bench.pipelines.errors import one_line
from segquant_bench.pipelines.sweeps.launch import LostJob, lost
from segquant_bench.pipelines.sweeps.task import Task, threads_per_job

if TYPE_CHECKING:
    import submitit

log = logging.getLogger(__name__)


class SubmititLauncher(Launcher):
    """Jobs by submitit.

    Args:
        cluster: local or slurm.
        folder: for submitit's files.
        parallel: how many jobs run at once.
        threads: of each local job; None is its share of the machine.
        poll: seconds between two looks at local jobs.
        max_num_timeout: how often Slurm puts a job whose time is over back into the queue.
        parameters: further ones of `submitit.AutoExecutor.update_parameters`.
    """

    def __init__(
        self, cluster: str, folder: str, parallel: int, threads: int | None = None, poll: float = 0.5,
        max_num_timeout: int = 0, **parameters: Any,
    ) -> None:  # fmt: skip
        within("hydra.launcher.parallel", parallel)
        self.cluster, self.folder, self.parallel, self.threads, self.poll = cluster, folder, parallel, threads, poll
        self.max_num_timeout = max_num_timeout
        self.parameters = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        log.info("%d jobs by submitit (%s), %d at once", len(job_overrides), self.cluster, self.parallel)
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        jobs = [(number, list(overrides)) for number, overrides in enumerate(job_overrides, initial_job_idx)]
        task = Task(self.context, self.config, self.function)
        return self._slurm(task, jobs) if self.cluster == "slurm" else self._local(task, jobs)

    def _executor(self) -> submitit.AutoExecutor:
        import submitit  # put off: Hydra looks at every launcher

        slurm = self.cluster == "slurm"
        settings = {"slurm_max_num_timeout": self.max_num_timeout} if slurm else {}
        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster, **settings)
        shared = {key: value for key, value in self.parameters.items() if value is not None}
        executor.update_parameters(**shared, **({"slurm_array_parallelism": self.parallel} if slurm else {}))
        return executor

    def _slurm(self, task: Task, jobs: Sequence[tuple[int, list[str]]]) -> list[JobReturn]:
        executor = self._executor()
        with executor.batch():  # an array
            submitted = [executor.submit(task, *job) for job in jobs]
        return [self._result(job) for job in submitted]

    def _local(self, task: Task, jobs: Sequence[tuple[int, list[str]]]) -> list[JobReturn]:
        executor, running, submitted = self._executor(), list[Any](), list[Any]()
        try:
            for job in jobs:
                while len(running) >= self.parallel:
                    time.sleep(self.poll)
                    running = [each for each in running if not each.done()]
                with patch.dict("os.environ", threads_per_job(self.threads, self.parallel)):
                    running.append(executor.submit(task, *job))
                submitted.append(running[-1])
            return [self._result(job) for job in submitted]
        except BaseException:
            for each in running:
                each.cancel(check=False)
            raise

    def _result(self, job: Any) -> JobReturn:
        import submitit

        try:
            found: JobReturn = job.results()[0]
            return found
        except submitit.core.utils.UncompletedJobError as error:
            log.warning("job %s was lost: %s", job.job_id, one_line(str(error).partition("\n")[0]))
            return lost(LostJob(f"its process was lost ({self.cluster} job {job.job_id}: killed, or out of memory)"))
