"""failure.json: why a run did not finish."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segquant_bench.pipelines.errors import one_line

log = logging.getLogger(__name__)

FILE = "failure.json"
KEYS = {"name": "name", "model": "model.name", "dataset": "dataset.name", "precision": "precision.name", "seed": "seed"}
"""What the record holds of the configuration, where it says so."""


def clear_failure(folder: Path) -> None:
    (folder / FILE).unlink(missing_ok=True)


def log_to_file(text: str) -> None:
    """Put a line into the run's log alone: what its console shows is told at the end."""
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s", (text,), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def write_failure(
    folder: Path, config: DictConfig, overrides: Sequence[str], message: str, mendable: str = "", tries: int = 1
) -> None:
    """Put the sentence into the run's folder; a folder that takes none is told of in the log.

    `mendable` is what another try may find otherwise, `tries` how often the job was begun.
    """
    known = {name: _selected(config, key) for name, key in KEYS.items()}
    record = {"schema": 1, **known, "overrides": list(overrides), "message": one_line(message)}
    record |= {"mendable": mendable, "tries": tries}
    # put off: eval imports numpy, which runs that are refused at once do without
    from segquant_bench.eval.files import save_text

    try:
        save_text(folder / FILE, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        log.warning("the report will not tell of this failure: %s", one_line(error))


def _selected(config: DictConfig, key: str) -> Any:
    """A value, None where the configuration is too broken to tell."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None
