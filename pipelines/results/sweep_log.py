"""A sweep's own run in the logger: its jobs while they run, its table and its report."""

from __future__ import annotations

import csv
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segquant_bench.eval.jobs import Listed
from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loggers.find import find_logger
from segquant_bench.pipelines.loggers.guarded import Guarded
from segquant_bench.pipelines.loggers.logger import FAILED, FINISHED, Logger
from segquant_bench.pipelines.results.sweep_asked import Asked, about_sweep
from segquant_bench.pipelines.results.sweep_line import Pace, pace_of

log = logging.getLogger(__name__)

TABLE, PAGE = "table.csv", "report.html"
SECONDS = 2.0
"""Between two looks at the jobs' records."""
SHARE = 0.02
"""Of the time that looking may take, where there are thousands of them."""


class SweepRun:
    """Shown from the first job that is listed to the report; nothing where the logger wants none.

    Args:
        begun: marks this command's part of the sweep.
    """

    def __init__(self, folder: Path, asked: Asked, begun: str) -> None:
        self.folder, self._asked, self._begun = folder, asked, begun
        self._shown: Guarded | None = None
        self._told: dict[str, int] = {}
        self._over, self._thread = threading.Event(), threading.Thread(target=self._look, daemon=True)

    def begin(self, jobs: Sequence[Listed]) -> None:
        """Faults become one line of the log."""
        try:
            config = OmegaConf.to_object(self._asked.logger)
            if not isinstance(config, LoggerConfig):
                raise PipelineError("its configuration is no logger's")
            logger = find_logger(config)
        except (PipelineError, OmegaConfBaseException) as error:
            log.warning("the sweep has no run of its own in the logger: %s", one_line(error))
            return
        self._shown = Guarded(logger, config.name)
        self._shown.open(about_sweep(self.folder, self._asked, jobs, self._begun))
        if self._shown.is_open:
            self._tell(pace_of(self.folder))
            self._thread.start()

    def _look(self) -> None:
        pause = SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            self._tell(pace_of(self.folder))
            pause = max(SECONDS, (time.monotonic() - began) / SHARE)

    def _tell(self, pace: Pace | None) -> None:
        counts = {} if pace is None else pace.counts()
        if self._shown is not None and counts != self._told:
            self._told = counts
            self._shown.ask(lambda logger: logger.values(counts))

    def show_report(self) -> None:
        """Once it is written."""
        if self._shown is not None and self._shown.is_open:
            self._shown.ask(lambda logger: _show(logger, self.folder))

    def end(self, state: str = FINISHED, why: str = "") -> None:
        """FINISHED is so only if all jobs did."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._shown is None:
            return
        pace = pace_of(self.folder)
        self._tell(pace)
        if pace is not None:
            counts = pace.counts()
            self._shown.ask(lambda logger: logger.summary(counts))
            if state == FINISHED and pace.missing:
                state, why = FAILED, f"{pace.missing} of {pace.total} jobs failed"
        self._shown.finish(state, why)


def _show(logger: Logger, folder: Path) -> None:
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        columns, *rows = list(csv.reader(file))
    logger.table("table", columns, list(zip(*map(_typed, zip(*rows, strict=True)), strict=True)))
    logger.page("report", folder / PAGE)


def _typed(column: Sequence[str]) -> list[Any]:
    """Numbers where all that is there are numbers: a table's column has one type."""
    try:
        return [float(cell) if cell else None for cell in column]
    except ValueError:
        return list(column)
