"""One job of a sweep in a process of its own, which launchers start on this or another machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Task:
    """Runs any job of a sweep; what it holds, and what it returns, can be pickled."""

    def __init__(self, context: HydraContext, config: DictConfig, function: TaskFunction) -> None:
        self.context, self.config, self.function = context, config, function
        self.singletons = Singleton.get_state()

    def __call__(self, number: int, overrides: Sequence[str]) -> JobReturn:
        setup_globals()
        Singleton.set_state(self.singletons)
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        return run_job(
            hydra_context=self.context, config=config, task_function=self.function,
            job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
        )  # fmt: skip

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit puts into the queue again before the time of a job is over: the same, which goes on."""
        import submitit  # no other launcher needs it

        return submitit.helpers.DelayedSubmission(self, *arguments)


def threads_per_job(threads: int | None, parallel: int) -> dict[str, str]:
    """The environment of jobs of which `parallel` share this machine; what the user set stays."""
    share = threads or max((os.cpu_count() or 1) // parallel, 1)
    return {name: str(share) for name in THREADS if threads or name not in os.environ}
