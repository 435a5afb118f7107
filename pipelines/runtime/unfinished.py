"""The folder of a stage that is being computed, and what a later run takes over from one that was killed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from segquant_bench.pipelines.runtime.health import RECORD

log = logging.getLogger(__name__)

PIECES = ".pieces"
"""The folder of what only helps a later run (see `segquant.keep`): no part of the result, kept if it is in `keeps`."""
PARTIAL = ".partial"
_CLOCK = ".began.json"
"""Hidden, so that it is none of the stage's files: seconds of earlier runs, and when this one began."""


class Unfinished:
    """A stage's folder before it gets its name; the stage's lock is held.

    Attributes:
        path: the folder, with nothing in it but what is kept.
        seconds: that earlier runs spent on what is kept, about.
    """

    def __init__(self, final: Path, name: str, keeps: Sequence[str]) -> None:
        self.path = final.with_name(final.name + (PARTIAL if keeps else f"{PARTIAL}{os.getpid()}"))
        self.keeps, self.seconds = tuple(keeps), 0.0
        for leftover in final.parent.glob(f"{final.name}{PARTIAL}*"):
            if leftover != self.path or not keeps:
                log.info("%s: removing what a killed run left", name)
                shutil.rmtree(leftover)
        if self.path.is_dir():
            self._take_over(name)
        else:
            self.path.mkdir()
        if keeps:
            (self.path / _CLOCK).write_text(json.dumps([self.seconds, time.time()]))

    def abandon(self, whole: bool) -> None:
        """After a failure remove it; unless `whole`, leave what a later run can use."""
        complete = self.keeps and (self.path / RECORD).is_file()
        if whole or not (complete or self._kept()):
            shutil.rmtree(self.path, ignore_errors=True)

    def _kept(self) -> list[Path]:
        return [path for folder in self.keeps for path in (self.path / folder).rglob("*") if path.is_file()]

    def _take_over(self, name: str) -> None:
        for entry in list(self.path.iterdir()):
            if entry.name in self.keeps or entry.name == _CLOCK:
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        kept = self._kept()
        for path in [path for path in kept if path.name.startswith(".")]:  # which was being written
            path.unlink()
            kept.remove(path)
        try:
            earlier, began = json.loads((self.path / _CLOCK).read_text())
            self.seconds = float(earlier) + max([0.0, *(path.stat().st_mtime - float(began) for path in kept)])
        except (OSError, ValueError, TypeError, OverflowError, RecursionError):
            pass  # killed before it was written: the seconds are those of this run
        log.info("%s: going on behind %d files of a run that was ended", name, len(kept))


def without_help(folder: Path) -> None:
    """Leave a complete stage's own files alone."""
    (folder / _CLOCK).unlink(missing_ok=True)
    if (folder / PIECES).is_dir():
        shutil.rmtree(folder / PIECES)
