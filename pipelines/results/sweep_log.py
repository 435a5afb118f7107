"""A sweep's own run in the logger: its table and its report."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loggers.find import find_logger
from segquant_bench.pipelines.loggers.guarded import Guarded
from segquant_bench.pipelines.loggers.logger import FAILED, FINISHED, About, Logger
from segquant_bench.pipelines.results.sweep_line import Pace

log = logging.getLogger(__name__)

TABLE, PAGE = "table.csv", "report.html"


@dataclass(frozen=True)
class Asked:
    """What a sweep was asked for: its logger's configuration, its command line, and the cache."""

    logger: Any
    overrides: Sequence[str]
    cache: Path

    @staticmethod
    def of(config: DictConfig) -> Asked:
        overrides = OmegaConf.select(config, "hydra.overrides.task") or []
        return Asked(config.get("logger"), [str(each) for each in overrides], Path(str(config.get("cache"))).absolute())


def log_sweep(folder: Path, asked: Asked, pace: Pace | None) -> None:
    """Show a sweep whose report was written; errors become one line of the log."""
    try:
        config = OmegaConf.to_object(asked.logger)
        if not isinstance(config, LoggerConfig):
            raise PipelineError("its configuration is no logger's")
        logger = find_logger(config)
    except (PipelineError, OmegaConfBaseException) as error:
        log.warning("the sweep has no run of its own in the logger: %s", one_line(error))
        return
    shown = Guarded(logger, config.name)
    shown.open(about_sweep(folder, asked))
    shown.ask(lambda logger: _show(logger, folder, pace))
    if pace is not None and pace.failed:
        shown.finish(FAILED, f"{pace.failed} of {pace.total} jobs failed")
    else:
        shown.finish(FINISHED)


def about_sweep(folder: Path, asked: Asked) -> About:
    """Its id is that of this command in this folder: the same again, with the same table, is not logged twice."""
    text = json.dumps([str(folder), list(asked.overrides)])
    return About(
        id=hashlib.sha256(text.encode()).hexdigest()[:12],
        content=hashlib.sha256((folder / TABLE).read_bytes()).hexdigest(),
        name=folder.name,
        group=folder.name,
        kind="sweep",
        tags=("sweep",),
        config={"overrides": list(asked.overrides), "folder": str(folder)},
        folder=folder,
        cache=asked.cache,
    )


def _show(logger: Logger, folder: Path, pace: Pace | None) -> None:
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        columns, *rows = list(csv.reader(file))
    logger.table("table", columns, list(zip(*map(_typed, zip(*rows, strict=True)), strict=True)))
    logger.page("report", folder / PAGE)
    if pace is not None:
        logger.summary({"jobs": pace.total, "jobs/done": pace.done, "jobs/failed": pace.failed})


def _typed(column: Sequence[str]) -> list[Any]:
    """Numbers where all that is there are numbers: a table's column has one type."""
    try:
        return [float(cell) if cell else None for cell in column]
    except ValueError:
        return list(column)
