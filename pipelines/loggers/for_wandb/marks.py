"""What was logged to W&B before: a mark in the cache for every run that finished."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from segquant.files import write_json
from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.loggers.logger import About


class Mark:
    """Of one run in one project."""

    def __init__(self, about: About, config: LoggerConfig) -> None:
        project = hashlib.sha256(f"{config.entity}/{config.project}".encode()).hexdigest()[:8]
        self._path = about.cache / "wandb" / f"{about.id}-{project}.json"
        shown = [about.content, config.group, config.images, config.artifact, list(config.tags)]
        self._digest = hashlib.sha256(json.dumps(shown).encode()).hexdigest()

    def place(self) -> str:
        """Where the run was logged with the same content; empty where it was not, or its offline folder is gone."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            place = str(found["place"])
            is_there = "://" in place or Path(place).is_dir()
            return place if found["digest"] == self._digest and is_there else ""
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ""

    def put(self, place: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {"digest": self._digest, "place": place})
