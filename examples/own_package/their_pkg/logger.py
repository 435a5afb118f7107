"""A logger: one line of JSON for everything that a run tells."""

import json
from collections.abc import Mapping
from typing import Any

from segquant_bench.pipelines.loggers.logger import About, Logger


class Lines(Logger):
    def open(self, about: About) -> bool:
        self._file = (about.folder / self.config.arguments["file"]).open("a", encoding="utf-8")
        self._write({"run": about.name, "id": about.id})
        return True

    def stage_ended(self, name: str, values: Mapping[str, float]) -> None:
        self._write({"stage": name, **values})

    def summary(self, values: Mapping[str, float | str]) -> None:
        self._write(values)

    def finish(self, state: str, why: str = "") -> None:
        self._write({"state": state, "why": why})
        self._file.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
