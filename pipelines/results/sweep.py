from __future__ import annotations

import itertools
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loggers.logger import FAILED, FINISHED, PREEMPTED
from segquant_bench.pipelines.results.sweep_asked import Asked
from segquant_bench.pipelines.results.sweep_line import tell_end, tell_place
from segquant_bench.pipelines.results.sweep_log import SweepRun
from segquant_bench.pipelines.runtime.interrupt import heard, signal_name
from segquant_bench.pipelines.sweeps.record import MARK, SweepRecord

log = logging.getLogger(__name__)

LOCK = ".lock"
TIMED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
"""As ${now:%Y-%m-%d_%H-%M-%S} writes the time."""


class SweepFolder(Callback):
    """Remembers this process's sweep folder; Hydra skips `on_multirun_end` when a job failed."""

    current: tuple[Path, bool] | None = None
    shown: SweepRun | None = None
    """The current sweep's own run in the logger."""
    sweep: str = ""
    """The sweep that this process runs jobs of."""

    def __init__(self) -> None:
        self.own = ""  # parallel launchers take the callback along into their processes

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make_own(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.own = secrets.token_hex(8)
        _make_own(config, "sweep")
        SweepFolder.current = (Path(config.hydra.sweep.dir).absolute(), bool(config.report))
        SweepFolder.shown = SweepRun(SweepFolder.current[0], Asked.of(config), self.own)
        SweepRecord.current = SweepRecord(SweepFolder.current[0], self.own)
        SweepRecord.current.begun = SweepFolder.shown.begin

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.sweep = self.own


def _make_own(config: DictConfig, kind: str) -> None:
    """A folder that is named by the time is this process's alone: others of the same second get -2, -3 … behind it."""
    wanted = str(config.hydra[kind].dir)
    if not TIMED.search(Path(wanted).name):
        return
    for number in itertools.count(1):
        folder = Path(wanted if number == 1 else f"{wanted}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:  # which Hydra meets as well, and main tells
            return
        with read_write(config.hydra):
            config.hydra[kind].dir = str(folder)
        return


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a job's folder from other runs.

    Raises:
        PipelineError: outside of the sweep's folder, another job's of this sweep, or one that a run writes into now.
    """
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        _check_inside(folder)
        _mark(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PipelineError(
            f"another run writes into {folder} now; wait for it, or choose another place with hydra.run.dir=DIRECTORY "
            "(of a sweep: hydra.sweep.dir)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _check_inside(folder: Path) -> None:
    if not folder.is_relative_to(_sweep_folder()):
        raise PipelineError(
            f"hydra.sweep.subdir leads out of the sweep's folder, to {folder}, where no report looks; leave .. out"
        )


def _sweep_folder() -> Path:
    hydra_config = HydraConfig.get()
    return Path(os.path.abspath(os.path.join(hydra_config.runtime.cwd, hydra_config.sweep.dir)))


def _mark(folder: Path) -> None:
    mark = folder / f"{MARK}{SweepFolder.sweep}"
    try:
        with mark.open("x") as file:
            file.write(_slurm_job())
    except FileExistsError as error:
        if not _slurm_job() or mark.read_text() != _slurm_job():
            raise PipelineError(
                f"{folder} is another job's folder already; put ${{hydra.job.num}} into hydra.sweep.subdir"
            ) from error
    for other in folder.glob(f"{MARK}*"):
        if other != mark:
            other.unlink(missing_ok=True)


def _slurm_job() -> str:
    """What stays the same of a job that Slurm puts back into the queue: its machine was lost, or its time is over."""
    number = os.environ.get("SLURM_JOB_ID", "")
    return number and f"{number} {HydraConfig.get().job.num}"


def refused_folder() -> Path | None:
    """Where a job that got no folder tells of it; None of a single run."""
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    return _sweep_folder() / f"refused_{HydraConfig.get().job.num}"


def report_sweep() -> Path | None:
    """Tell how the sweep ended, and render its report into its folder; None without a sweep."""
    if SweepFolder.current is None:
        return None
    folder, wanted = SweepFolder.current
    tell_end(folder)
    if not wanted:
        return None
    # put off: matplotlib, which single runs and `segquant --help` do without
    from segquant_bench.eval.files import find_named
    from segquant_bench.eval.render import write_report
    from segquant_bench.eval.results import RESULTS, beside_broken

    if not find_named(folder, RESULTS):
        log.warning("no report, because no run below %s finished", one_line(str(folder)))
        return None
    beside_broken([folder], lambda broken: write_report([folder], folder, skipped=broken))
    if SweepFolder.shown is not None:
        SweepFolder.shown.show_report()
    return folder


@contextmanager
def shown_sweep() -> Iterator[None]:
    """Within it, a sweep that begins has a run of its own in the logger, which ends as the block does."""
    SweepFolder.shown = None
    try:
        yield
    except KeyboardInterrupt as error:
        heard()  # the logger is told in a moment
        _end_shown(PREEMPTED, f"ended by {signal_name(error)}")
        raise
    except BaseException as error:
        _end_shown(FAILED, one_line(error) or type(error).__name__)
        raise
    _end_shown(FINISHED)


def _end_shown(state: str, why: str = "") -> None:
    if SweepFolder.shown is not None:
        SweepFolder.shown.end(state, why)
        SweepFolder.shown = None


def place_in_sweep() -> str:
    """Log where this job stands in its sweep; returns what begins its lines about progress, empty of a single run."""
    return tell_place(_sweep_folder()) if HydraConfig.get().mode is RunMode.MULTIRUN else ""
