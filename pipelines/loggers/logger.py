"""The seam of loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from segquant_bench.pipelines.config.sections import LoggerConfig

if TYPE_CHECKING:
    from PIL import Image

FINISHED, FAILED, PREEMPTED = "finished", "failed", "preempted"
"""How a run ends; preempted by a signal, after which the same command goes on."""


@dataclass(frozen=True)
class About:
    """What is known of a run, or of a sweep, before its work.

    Attributes:
        id: the same for a run that goes on where another was killed: its configuration's hash.
        content: of all that its numbers come from; one that was logged with this content needs no second time.
        group: the sweep that it belongs to.
        kind: the quantizer, or "sweep".
        config: JSON types.
        folder: its own, where files of the logger go.
        cache: shared by all runs.
    """

    id: str
    content: str
    name: str
    group: str
    kind: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    folder: Path
    cache: Path


@dataclass(frozen=True)
class Picture:
    """A picture of a run, beside its reference if there is one."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Artifact:
    """Files that are the product of a run, by their names in it."""

    name: str
    files: Mapping[str, Path]
    about: Mapping[str, Any] = field(default_factory=dict)


class Logger:
    """Where a run is shown while it works, and afterwards.

    To add one, write a module in `members` (or in a package of one's own) with a subclass, and a configuration that
    names it. `check` and `open` come before the work, `finish` at its end; what lies between comes from two threads,
    one call at a time. Whatever a method but `check` raises becomes one line of the log and ends the logging, never
    the run. Methods that are left out show nothing.

    Attributes:
        settings: the keys of the configuration that it reads, beside `name`, `_target_` and `arguments`.
    """

    settings: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: LoggerConfig) -> None:
        self.config = config

    def check(self) -> None:
        """PipelineError: what the user can mend, before anything is loaded or computed."""

    def open(self, about: About) -> bool:
        """Begin, or go on with, a run. False: it was logged before, nothing more is told of it."""
        return True

    def stage_began(self, name: str) -> None:
        """A stage is computed from now on."""

    def stage_ended(self, name: str, values: Mapping[str, float]) -> None:
        """A stage is there. `values`: seconds, peak_memory_mb, cached (0 or 1), perhaps peak_device_memory_mb."""

    def values(self, values: Mapping[str, float]) -> None:
        """Numbers at this moment, by name: pictures a second, memory …"""

    def curve(self, name: str, along: str, points: Sequence[tuple[float, float]]) -> None:
        """Numbers over something else than time, such as the sampling step."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Cells are text, numbers or None."""

    def pictures(self, name: str, pictures: Sequence[Picture]) -> None:
        """A gallery."""

    def page(self, name: str, path: Path) -> None:
        """A self-contained HTML file."""

    def artifact(self, artifact: Artifact) -> None:
        """The files that a run made."""

    def summary(self, values: Mapping[str, float | str]) -> None:
        """What the run came to."""

    def finish(self, state: str, why: str = "") -> None:
        """The last call: FINISHED, FAILED or PREEMPTED, with a sentence."""
