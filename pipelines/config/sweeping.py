"""What sweepers share: the sweep's folder, and the jobs with their folders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from segquant_bench.eval.jobs import Listed
from segquant_bench.pipelines.bounds import within
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.sweeps.launch import Launch
from segquant_bench.pipelines.sweeps.record import SweepRecord


def opened(sweeper: Sweeper, batch: int | None = None) -> Launch:
    """What launches a sweeper's jobs, `batch` at once; makes the sweep's folder.

    Raises:
        PipelineError: `retries` or `batch` is out of range.
    """
    config, launcher = sweeper.config, sweeper.launcher
    assert config is not None and launcher is not None  # by `setup`
    retries = int(config.retries)
    within("retries", retries)
    if batch is not None:
        within("hydra.sweeper.max_batch_size", batch)
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    record = SweepRecord.current or SweepRecord(folder.absolute(), "")
    return Launch(launcher, record, retries, batch)


def listed(sweeper: Sweeper, jobs: Sequence[Sequence[str]], first: int = 0) -> list[Listed]:
    """Jobs with their folders, recorded for `segquant-status`; `first` is the number of the first.

    Raises:
        HydraException: one does not compose.
    """
    assert sweeper.config is not None and sweeper.hydra_context is not None  # by `setup`
    loader, found = sweeper.hydra_context.config_loader, []
    for number, overrides in enumerate(jobs, first):
        config = loader.load_sweep_config(sweeper.config, list(overrides))
        found.append(Listed(_folder(config, number), tuple(overrides)))
    if SweepRecord.current is not None:
        SweepRecord.current.add(found)
    return found


class JobCheck:
    """What refuses a job by its configuration alone.

    Attributes:
        of: called with a job's configuration, raises PipelineError; set by the program, since what checks a
            configuration knows the sweepers.
    """

    of: ClassVar[Callable[[DictConfig], None] | None] = None


def refuse_hopeless(sweeper: Sweeper, jobs: Sequence[Sequence[str]]) -> None:
    """Say once, before the first job, what every job would be refused for: a key or a value that all of them have.

    Raises:
        PipelineError: all jobs' configurations are refused with one sentence.
        HydraException: one does not compose.
    """
    assert sweeper.config is not None and sweeper.hydra_context is not None  # by `setup`
    loader, told = sweeper.hydra_context.config_loader, None
    for overrides in jobs:
        error = _refusal(loader.load_sweep_config(sweeper.config, list(overrides)))
        if error is None or (told is not None and str(error) != str(told)):
            return
        told = error
    if told is not None:
        raise told


def _refusal(config: DictConfig) -> PipelineError | None:
    """Why a job would not begin, as far as its configuration says."""
    known, before = HydraConfig.instance(), HydraConfig.instance().cfg
    _folder(config, 0)
    known.set_config(config)
    try:
        own = copy.deepcopy(config)
        with read_write(own), open_dict(own):
            del own["hydra"]
        if JobCheck.of is not None:
            JobCheck.of(own)
    except PipelineError as error:
        return error
    except OmegaConfBaseException:  # a job says it
        return None
    finally:
        known.cfg = before
    return None


def _folder(config: DictConfig, number: int) -> str:
    """A job's folder as every launcher names it, where the configuration is not too broken to tell."""
    with open_dict(config):
        config.hydra.job.num = config.hydra.job.id = number
    try:
        return str(config.hydra.sweep.subdir)
    except (OmegaConfBaseException, PipelineError):
        return ""
