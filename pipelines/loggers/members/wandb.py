"""Weights & Biases."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from segquant_bench.pipelines.errors import one_line
from segquant_bench.pipelines.loggers.for_wandb.marks import Mark
from segquant_bench.pipelines.loggers.for_wandb.mode import check_logger
from segquant_bench.pipelines.loggers.for_wandb.names import all_tags, artifact_name, shortened
from segquant_bench.pipelines.loggers.logger import FINISHED, PREEMPTED, About, Artifact, Logger, Picture
from segquant_bench.texts import plain

log = logging.getLogger(__name__)

SERVICE = "WANDB_SERVICE"
"""Where wandb tells child processes of the service that it started."""
_refused: list[str] = []
"""Why W&B took no run of this process: the others are not tried again."""


class Wandb(Logger):
    """One run of W&B for each run, whose id is the configuration's hash: a run that was killed goes on there."""

    settings: ClassVar[frozenset[str]] = frozenset({"project", "entity", "group", "tags", "mode", "images", "artifact"})
    _run: Any = None
    _mode: Any = "offline"

    def check(self) -> None:
        self._mode = check_logger(self.config)

    def open(self, about: About) -> bool:
        self._mark = Mark(about, self.config)
        before = self._mark.place()
        if before and not os.environ.get("WANDB_SWEEP_ID"):  # an agent's trial is told whatever was logged before
            log.info("wandb: logged before, %s", one_line(before))
            return False
        (about.folder / "wandb").mkdir(parents=True, exist_ok=True)  # else wandb writes elsewhere, and tells nobody
        if self._mode == "online" and _refused:
            self._mode = "offline"
        try:
            self._run = self._begun(about)
        except Exception as error:  # whatever wandb and its service raise
            if self._mode != "online":
                raise
            _refused.append(one_line(error))
            log.warning("W&B takes no run online (%s): logged offline, `wandb sync` can send it later", one_line(error))
            _end_service()
            self._mode = "offline"
            self._run = self._begun(about)
        log.info("wandb: %s", one_line(self._place()) or self._mode)
        return True

    def _begun(self, about: About) -> Any:
        import wandb  # put off: runs that were logged before do without

        before = os.environ.get(SERVICE)
        begun = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=shortened(self.config.group or about.group),
            id=about.id,
            resume="allow",
            reinit="create_new",  # a sweep's own run is open beside
            name=shortened(about.name),
            job_type=shortened(about.kind),
            tags=all_tags(about.tags, self.config.tags),
            config=dict(about.config),
            dir=about.folder,
            mode=self._mode,
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        if before is None:  # else jobs of a sweep, which may run on other machines, would look for this process's
            os.environ.pop(SERVICE, None)
        return begun

    def _place(self) -> str:
        """The run's address, its folder where it is offline, or nothing."""
        if self._mode == "online":
            return str(self._run.url)
        return str(Path(self._run.settings.sync_dir).absolute()) if self._mode == "offline" else ""

    def stage_began(self, name: str) -> None:
        self._run.log({"stage": name})

    def stage_ended(self, name: str, values: Mapping[str, float]) -> None:
        self._run.log({f"stage/{name}/{key}": value for key, value in values.items()})

    def values(self, values: Mapping[str, float]) -> None:
        self._run.log(dict(values))

    def curve(self, name: str, along: str, points: Sequence[tuple[float, float]]) -> None:
        self._run.define_metric(along, hidden=True)
        self._run.define_metric(name, step_metric=along)
        for x, y in points:
            self._run.log({along: x, name: y})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def pictures(self, name: str, pictures: Sequence[Picture]) -> None:
        import wandb

        self._run.log({name: [wandb.Image(picture.image, caption=plain(picture.caption)) for picture in pictures]})

    def page(self, name: str, path: Path) -> None:
        import wandb

        self._run.log({name: wandb.Html(path.read_text(encoding="utf-8"), inject=False)})

    def artifact(self, artifact: Artifact) -> None:
        if not (self.config.artifact and artifact.files):
            return
        import wandb

        found = wandb.Artifact(artifact_name(artifact.name), type="model", metadata=dict(artifact.about))
        for inside, path in artifact.files.items():
            found.add_file(str(path), name=inside, policy="immutable")
        self._run.log_artifact(found)

    def summary(self, values: Mapping[str, float | str]) -> None:
        self._run.log({key: value for key, value in values.items() if not isinstance(value, str)})
        self._run.summary.update(dict(values))

    def finish(self, state: str, why: str = "") -> None:
        if self._run is None:
            return
        self._run.summary.update({"state": state, **({"why": plain(why)} if why else {})})
        if state == PREEMPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state == FINISHED else 1)
        if state == FINISHED and self._place():
            self._mark.put(self._place())


def _end_service() -> None:
    import wandb

    wandb.teardown()  # else it holds on to the id of the run that it could not begin


LOGGER = Wandb
