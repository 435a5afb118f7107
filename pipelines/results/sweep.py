from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from segquant_bench.pipelines.errors import PipelineError, one_line

log = logging.getLogger(__name__)


class SweepFolder(Callback):
    """Remembers this process's sweep folder; Hydra skips `on_multirun_end` when a job failed."""

    current: tuple[Path, bool] | None = None
    used: ClassVar[set[Path]] = set()
    """Folders of this sweep's jobs in this process."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepFolder.used = set()
        SweepFolder.current = (Path(config.hydra.sweep.dir).absolute(), bool(config.report))


def claim_folder(folder: Path) -> None:
    """PipelineError if another job of this sweep has the folder."""
    if folder in SweepFolder.used:
        raise PipelineError(f"{folder} is another job's folder already; put ${{hydra.job.num}} into hydra.sweep.subdir")
    SweepFolder.used.add(folder)


def report_sweep() -> Path | None:
    """Render this sweep's report into its folder; None without a sweep."""
    if SweepFolder.current is None:
        return None
    folder, wanted = SweepFolder.current
    if not wanted:
        return None
    # put off: matplotlib, which single runs and `segquant --help` do without
    from segquant_bench.eval.files import find_named
    from segquant_bench.eval.render import write_report
    from segquant_bench.eval.results import RESULTS

    if not find_named(folder, RESULTS):
        log.warning("no report, because no run below %s finished", one_line(str(folder)))
        return None
    write_report([folder], folder)
    return folder
