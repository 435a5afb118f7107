"""Several processes on one stage: each makes its share of the batches, on a GPU of its own where there are GPUs.

Batches lie on the disk one by one, under the stage's key, for runs that are killed. So the processes need not talk:
what one of them made, the first finds, and what one left when it died, the first makes. Batches are those of one
process, and so are their bytes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from segquant_bench.pipelines.config.auto_engine import engine_name
from segquant_bench.pipelines.config.engine import EXPORTED
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.peers import Peer
from segquant_bench.pipelines.runtime.cache import Finished
from segquant_bench.pipelines.runtime.quiet import quieten_absent_gpu
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.pipelines.stages.run import Run, Stage

log = logging.getLogger(__name__)


def check_processes(run: Run) -> None:
    """Refuse what several processes cannot do.

    Raises:
        PipelineError: more processes than GPUs or cores, a quantizer or an engine that works in one, or a process that
            may not start others.
    """
    count = run.config.generate.processes
    if count == 1:
        return
    asked = f"generate.processes={count}"
    if isinstance(run.method, Peer):
        raise PipelineError(
            f"{asked} needs the same model in every process, and quantizer={run.config.quantizer_name} makes it anew "
            "in each; set generate.processes=1"
        )
    if engine_name(run.config) in EXPORTED:
        raise PipelineError(
            f"{asked} cannot share the file that run={engine_name(run.config)} exports; set generate.processes=1, or "
            "another engine"
        )
    on_gpu = run.device.startswith("cuda")
    there = torch.cuda.device_count() if on_gpu else cores()
    if there < count:
        what = "GPU" if on_gpu else "processor core"
        raise PipelineError(f"{asked} takes a {what} for each, and there are {there}; set generate.processes={there}")
    if multiprocessing.current_process().daemon:
        raise PipelineError(
            f"{asked} starts processes, and this launcher's may not; set generate.processes=1, or leave "
            "hydra/launcher out"
        )


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def together(run: Run, name: str, folder: Path) -> Iterator[Share | None]:
    """Other processes make their shares of stage `name` meanwhile; at the end they are waited for.

    Yields:
        This process's own share; None if it is alone.
    """
    count = run.config.generate.processes
    if count == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    shares = [Share(number, count) for number in range(1, count)]
    processes = [
        context.Process(
            target=_help, name=f"{name} {share.number + 1} of {count}", daemon=True,
            args=(_configured(run, share), run.table, run.finished, name, folder, share, told),
        )
        for share in shares
    ]  # fmt: skip
    try:
        for process in processes:
            process.start()
        yield Share(0, count)
        for process in processes:
            process.join()
    finally:
        _end(processes)
    _tell(processes, told)


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None and process.is_alive():
            process.terminate()
            process.join()


def _tell(processes: Sequence[BaseProcess], told: Any) -> None:
    """What ended early; the batches that it left are made by this process."""
    sentences: dict[str, str] = {}
    while not told.empty():
        who, sentence = told.get()
        sentences[who] = sentence
    for process in processes:
        if process.exitcode:
            why = sentences.get(process.name, f"it ended with code {process.exitcode}")
            log.warning("process %s was lost (%s); this one makes what it left", process.name, why)


def _configured(run: Run, share: Share) -> RunConfig:
    """With a GPU of its own, if the run uses one."""
    config = run.config
    if not run.device.startswith("cuda"):
        return config
    return replace(config, model=replace(config.model, device=f"cuda:{share.number}"))


def _help(
    config: RunConfig,
    table: Sequence[Stage],
    finished: Mapping[str, Finished],
    name: str,
    folder: Path,
    share: Share,
    told: Any,
) -> None:
    """What another process does."""
    quieten_absent_gpu()
    (stage,) = (stage for stage in table if stage.name == name)
    assert stage.share is not None
    try:
        stage.share(Run(config, table, dict(finished)), folder, share)
    except Exception as error:
        told.put((multiprocessing.current_process().name, one_line(error)))
        raise SystemExit(1) from error
