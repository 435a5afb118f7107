"""What sweepers share: the sweep's folder, and the jobs with their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict
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


def _folder(config: DictConfig, number: int) -> str:
    """A job's folder as every launcher names it, where the configuration is not too broken to tell."""
    with open_dict(config):
        config.hydra.job.num = config.hydra.job.id = number
    try:
        return str(config.hydra.sweep.subdir)
    except (OmegaConfBaseException, PipelineError):
        return ""
