"""TensorBoard, whose event files need no server and no account."""

from __future__ import annotations

import importlib.util
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from segquant.files import write_json
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loggers.logger import FINISHED, About, Logger, Picture
from segquant_bench.texts import plain

log = logging.getLogger(__name__)

FOLDER, MARK = "tensorboard", ".logged.json"
MOST_ROWS = 200
"""Of a table, which is shown as text."""


class TensorBoard(Logger):
    """Events below the run's folder: scalars over time, curves over steps, galleries and tables. No model files."""

    settings: ClassVar[frozenset[str]] = frozenset({"images"})
    _writer: Any = None

    def check(self) -> None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise PipelineError(
                "logger=tensorboard needs the package tensorboardX; run pip install '.[tensorboard]' in a clone of "
                "segquant, or set logger=none"
            )

    def open(self, about: About) -> bool:
        self._folder, self._content = about.folder / FOLDER, f"{about.id} {about.content}"
        if _logged(self._folder / MARK) == self._content:
            log.info("tensorboard: logged before, %s", one_line(str(self._folder)))
            return False
        from tensorboardX import SummaryWriter

        suffix = f".{secrets.token_hex(4)}"  # files are named by the second, and written over
        self._writer, self._step = SummaryWriter(str(self._folder), filename_suffix=suffix), 0
        self._text("run", f"{about.name} ({', '.join(about.tags)})")
        self._text("config", "    " + json.dumps(about.config, indent=1, default=str).replace("\n", "\n    "))
        log.info("tensorboard: %s", one_line(str(self._folder)))
        return True

    def stage_began(self, name: str) -> None:
        self._text("stage", name)
        self._writer.flush()

    def stage_ended(self, name: str, values: Mapping[str, float]) -> None:
        self.values({f"stage/{name}/{key}": value for key, value in values.items()})

    def values(self, values: Mapping[str, float]) -> None:
        self._step += 1
        for key, value in values.items():
            self._writer.add_scalar(key, value, self._step)
        self._writer.flush()

    def curve(self, name: str, along: str, points: Sequence[tuple[float, float]]) -> None:
        for x, y in points:
            self._writer.add_scalar(f"{name}/{along}", y, round(x))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [_row(columns), _row("---" for _ in columns), *(_row(row) for row in rows[:MOST_ROWS])]
        left = len(rows) - MOST_ROWS
        self._text(name, "\n".join([*lines, *([f"\n… and {left} rows more"] if left > 0 else [])]))

    def pictures(self, name: str, pictures: Sequence[Picture]) -> None:
        import numpy as np

        for number, picture in enumerate(pictures):
            self._writer.add_image(f"{name}/{number:05d}", np.asarray(picture.image), 0, dataformats="HWC")
        self.table(f"{name}/captions", ["picture", "caption"], [[n, each.caption] for n, each in enumerate(pictures)])

    def page(self, name: str, path: Path) -> None:
        self._text(name, f"{path}")

    def summary(self, values: Mapping[str, float | str]) -> None:
        self.values({key: value for key, value in values.items() if not isinstance(value, str)})
        for key, value in values.items():
            if isinstance(value, str):
                self._text(key, value)

    def finish(self, state: str, why: str = "") -> None:
        if self._writer is None:
            return
        self._text("state", f"{state}: {why}" if why else state)
        self._writer.close()
        if state == FINISHED:
            write_json(self._folder / MARK, {"content": self._content})

    def _text(self, name: str, text: str) -> None:
        self._writer.add_text(name, text, self._step)


def _row(cells: Any) -> str:
    return "| " + " | ".join(plain(str(cell)).replace("|", "\\|") for cell in cells) + " |"


def _logged(mark: Path) -> str:
    try:
        return str(json.loads(mark.read_text(encoding="utf-8"))["content"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


LOGGER = TensorBoard
