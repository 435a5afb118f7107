from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.config.quantizer import build_method, check_one_precision
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.data.datasets import Dataset, load_dataset
from segquant_bench.pipelines.loading.files import fingerprint, resolve_directory, resolve_part
from segquant_bench.pipelines.loading.models import denoiser_name, resolve_device
from segquant_bench.pipelines.runtime.cache import Finished, find_finished, run_stage, stage_key
from segquant_bench.pipelines.runtime.meaning import code_digest
from segquant_bench.pipelines.sampling.share import Share

if TYPE_CHECKING:
    import torch

    from segquant import Method
    from segquant_bench.pipelines.peers import Peer

log = logging.getLogger(__name__)

SHARED_CODE = ("pipelines.stages.run", "pipelines.stages.shared.inputs")
"""What every stage gets its inputs from."""


def _nothing(run: Run) -> Mapping[str, Any]:
    return {}


def _always(config: RunConfig) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """One step of a run, whose result is a folder in the cache.

    To add one, write a module in this folder with a value of this class, and put the value into `benchmark.STAGES`
    behind the stages that it needs. Settings of its own are `run.config.stages[NAME]`, from conf/stages/NAME.yaml.

    Its key hashes `depends`, the keys of `needs`, and the meaning of `code`; whoever has the same key shares the
    folder. So everything that changes the numbers must be in one of the three.

    Attributes:
        name: of the stage and of its folder.
        compute: fills the folder that it is given, empty but for `keeps`. It may ask the run for its pipeline, and
            for the folders of stages in `needs` and of those that they need.
        needs: stages whose results it reads; those that the run does not have are left out.
        code: modules and packages that it computes with (see `meaning.code_digest`), beside its own module, those of
            the stages that it needs, and SHARED_CODE.
        depends: values that it depends on, JSON types.
        when: whether a run has this stage.
        asked: whether a run wants it for itself, and not only where another stage needs it.
        keeps: folders whose files a killed run leaves to the next; `compute` then goes on behind them, to the same
            bytes.
        share: makes one process's share of the batches into `keeps`, and nothing else; see `shared.together`.
    """

    name: str
    compute: Callable[[Run, Path], None]
    needs: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    depends: Callable[[Run], Mapping[str, Any]] = _nothing
    when: Callable[[RunConfig], bool] = _always
    asked: bool = True
    keeps: tuple[str, ...] = ()
    share: Callable[[Run, Path, Share], None] | None = None

    @property
    def whole_code(self) -> tuple[str, ...]:
        """`code`, the module that defines `compute`, and SHARED_CODE."""
        own = self.compute.__module__.removeprefix("segquant_bench.")
        return (own, *SHARED_CODE, *self.code)


@dataclass
class Run:
    """One run. Everything is made when first asked for, and once.

    Attributes:
        table: stages, each behind those that it needs.
        finished: by name, those asked for so far.
        peer_denoiser: another tool's.
    """

    config: RunConfig
    table: Sequence[Stage]
    finished: dict[str, Finished] = field(default_factory=dict)
    peer_denoiser: torch.nn.Module | None = None
    _records: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _open: list[Stage] = field(default_factory=list, repr=False)

    def has(self, name: str) -> bool:
        return name in self._stages and self._stages[name].when(self.config)

    def key(self, name: str) -> str:
        return stage_key(name, self.record(name))

    def record(self, name: str) -> dict[str, Any]:
        """What a stage's key hashes."""
        if name not in self._records:
            stage = self._stages[name]
            self._records[name] = {
                "depends": dict(stage.depends(self)),
                "needs": {need: self.key(need) for need in self._needed(stage)},
                "code": code_digest(*stage.whole_code),
            }
        return self._records[name]

    def folder(self, name: str) -> Path:
        """A stage's folder, computed if missing."""
        return self.stage(name).path

    def stage(self, name: str) -> Finished:
        """A finished stage, computed with its needs if missing."""
        if self._open:
            self._check_need(self._open[-1], name)
        return self._finish(name)

    def _finish(self, name: str) -> Finished:
        if name not in self.finished:
            stage = self._stages[name]
            found = find_finished(name, self.cache, self.record(name))
            self.finished[name] = found or self._compute(stage)
        return self.finished[name]

    def _compute(self, stage: Stage) -> Finished:
        for need in self._needed(stage):
            self._finish(need)

        def compute(folder: Path) -> None:
            self._open.append(stage)
            try:
                stage.compute(self, folder)
            finally:
                self._open.pop()

        return run_stage(stage.name, self.cache, self.record(stage.name), compute, stage.keeps)

    def _needed(self, stage: Stage) -> list[str]:
        return [need for need in stage.needs if self.has(need)]

    def _check_need(self, stage: Stage, name: str) -> None:
        # A stage must not read what its key does not hash.
        known, found = list(self._needed(stage)), {stage.name}
        while known:
            need = known.pop()
            found.add(need)
            known += [each for each in self._needed(self._stages[need]) if each not in found]
        if name not in found:
            raise RuntimeError(f"stage {stage.name} reads {name}, which it does not need; put it into its `needs`")

    @cached_property
    def _stages(self) -> dict[str, Stage]:
        return {stage.name: stage for stage in self.table}

    @cached_property
    def cache(self) -> Path:
        return Path(self.config.cache)

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.config.dataset, self.config.calibration)

    @cached_property
    def directory(self) -> Path:
        return resolve_directory(self.config.model)

    @cached_property
    def device(self) -> str:
        return resolve_device(self.config.model.device)

    @cached_property
    def method(self) -> Method | Peer:
        """A precision that it cannot do is refused, and one that is not the run's."""
        made = build_method(self.config)
        check_one_precision(self.config)
        return made

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model's files, parts included, and of the variant that is read of them."""
        model = self.config.model
        found = fingerprint(self.directory)
        parts = {name: fingerprint(resolve_part(name, part)) for name, part in model.parts.items()}
        named = {"": model.variant, **{name: part.variant for name, part in model.parts.items()}}
        variants = {name: variant for name, variant in named.items() if variant is not None}
        more = {key: value for key, value in (("parts", parts), ("variants", variants)) if value}
        return stage_key("model", {"pipeline": found, **more}) if more else found

    @cached_property
    def pipeline(self) -> Any:
        """The unquantized pipeline, loaded."""
        # put off: a run whose stages are all finished loads no model
        from segquant_bench.pipelines.loading.assemble import assemble

        # its prompts are those of all stages together, so it is in no stage's `needs`; each hashes its own prompts
        embeddings = self._finish("embeddings").path if self.has("embeddings") else None
        log.info("loading %s", self.directory)
        return assemble(self.config.model, self.directory, embeddings)

    @cached_property
    def denoiser_name(self) -> str:
        return denoiser_name(self.pipeline, self.config.model.denoiser)

    @property
    def denoiser(self) -> torch.nn.Module:
        """The unquantized denoiser."""
        found: torch.nn.Module = self.pipeline.components[self.denoiser_name]
        return found
