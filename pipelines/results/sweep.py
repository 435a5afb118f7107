"""What a sweep leaves in its own folder once its jobs are done."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class SweepFolder(Callback):
    """Remembers the folder of the sweep that this process started.

    The report is not rendered in `on_multirun_end`: Hydra leaves that out when a job failed, and the report
    of the others is wanted all the same.
    """

    current: tuple[Path, bool] | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's folder and whether a report is wanted."""
        SweepFolder.current = (Path(config.hydra.sweep.dir), bool(config.report))


def report_sweep() -> Path | None:
    """Render the report of the sweep that this process ran into its folder; None if there is none."""
    if SweepFolder.current is None:
        return None
    folder, wanted = SweepFolder.current
    if not wanted or not any(folder.glob("*/results.json")):
        return None
    # put off: matplotlib, which single runs and `segquant --help` do without
    from segquant_bench.eval.render import write_report

    write_report([folder], folder)
    return folder
