"""Stages of the user's own package: `stages.NAME._target_=their_pkg.module.STAGE`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.own_paths import stage_paths
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime import own_code
from segquant_bench.pipelines.runtime.own_modules import own_digest
from segquant_bench.pipelines.stages.run import Run, Stage

log = logging.getLogger(__name__)


def with_own_stages(known: Sequence[Stage], stages: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The table of all stages: the benchmark's, then the user's, each behind those that it needs.

    Args:
        stages: `RunConfig.stages`; of these, the ones with a `_target_`.

    Raises:
        PipelineError: a path that leads to no stage, a stage of another name, unknown needs or a circle of them.
    """
    own = {name: _find(name, path) for name, path in stage_paths(stages).items()}
    names = [*(stage.name for stage in known), *own]
    if taken := sorted({stage.name for stage in known} & set(own)):
        raise PipelineError(f"stages.{taken[0]}._target_: the benchmark has a stage {taken[0]}; rename yours")
    for stage in own.values():
        for need in stage.needs:
            if need not in names:
                raise PipelineError(f"stage {stage.name} needs {need!r}, which is no stage; {nearest(need, names)}")
    needs = {name: [need for need in stage.needs if need in own] for name, stage in own.items()}
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise PipelineError(f"stages that need each other cannot be computed: {circle}; drop one need") from error
    return (*known, *(own[name] for name in order))


def _find(name: str, path: str) -> Stage:
    key = f"stages.{name}.{own_code.TARGET}"
    stage = own_code.find(path, key)
    if not isinstance(stage, Stage):
        raise PipelineError(
            f"{key}={path} is a {type(stage).__name__}; name a value of segquant_bench.pipelines.stages.run.Stage"
        )
    if stage.name != name:
        raise PipelineError(f"{key}={path} is a stage called {stage.name!r}; write stages.{stage.name}")
    if not inspect.isfunction(stage.compute):
        raise PipelineError(f"{key}={path}: its compute is a {type(stage.compute).__name__}; give a function")
    return dataclasses.replace(stage, compute=_told(stage.compute, path), depends=_with_code(stage, path))


def _told(compute: Callable[[Run, Path], None], path: str) -> Callable[[Run, Path], None]:
    """What the user's code raises becomes one sentence."""

    @functools.wraps(compute)
    def checked(run: Run, folder: Path) -> None:
        try:
            compute(run, folder)
        except PipelineError:
            raise
        except Exception as error:  # whatever the user's code raises
            log.debug("computing %s", path, exc_info=error)
            raise PipelineError(f"{path} fails ({own_code.told(error)}); correct it or its settings") from error

    return checked


def _with_code(stage: Stage, path: str) -> Callable[[Run], Mapping[str, Any]]:
    """`depends`, with the code of the stage's package and of `compute`'s, which may be another one."""
    compute = f"{stage.compute.__module__}.{stage.compute.__qualname__}"
    return lambda run: {**stage.depends(run), "own_code": own_digest(path, compute)}
