"""All stages of the benchmark."""

from __future__ import annotations

import json
import math

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.data.datasets import Dataset
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.cache import make_cache
from segquant_bench.pipelines.sampling.timesteps import check_count
from segquant_bench.pipelines.stages.calibrate import CALIBRATE
from segquant_bench.pipelines.stages.components.graphs import COMPONENT_GRAPHS
from segquant_bench.pipelines.stages.components.inputs import COMPONENT_INPUTS
from segquant_bench.pipelines.stages.components.methods import component_methods
from segquant_bench.pipelines.stages.components.quantize import COMPONENTS
from segquant_bench.pipelines.stages.correct import CORRECT
from segquant_bench.pipelines.stages.embeddings import EMBEDDINGS
from segquant_bench.pipelines.stages.evaluate import EVALUATE, check_judges
from segquant_bench.pipelines.stages.generate import GENERATE
from segquant_bench.pipelines.stages.graph import GRAPH
from segquant_bench.pipelines.stages.layers import check_layers
from segquant_bench.pipelines.stages.loadable import check_loadable
from segquant_bench.pipelines.stages.own import with_own_stages
from segquant_bench.pipelines.stages.polarity import POLARITY
from segquant_bench.pipelines.stages.quantize import ERRORS, QUANTIZE
from segquant_bench.pipelines.stages.real import REAL
from segquant_bench.pipelines.stages.reference import REFERENCE
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.advice import advise
from segquant_bench.pipelines.stages.shared.engine import check_engine
from segquant_bench.pipelines.stages.shared.judgement import check_metrics, needs_real, without_real
from segquant_bench.pipelines.stages.shared.together import check_processes
from segquant_bench.pipelines.stages.speed import SPEED, Settings

STAGES: tuple[Stage, ...] = (
    EMBEDDINGS,
    REFERENCE,
    REAL,
    CALIBRATE,
    GRAPH,
    POLARITY,
    QUANTIZE,
    COMPONENT_INPUTS,
    COMPONENT_GRAPHS,
    COMPONENTS,
    CORRECT,
    GENERATE,
    EVALUATE,
    SPEED,
)
"""In the order of a run: each behind those that it needs."""


def open_run(config: RunConfig) -> Run:
    """A run, nothing computed yet.

    Raises:
        PipelineError: settings of an unknown stage, or a stage of the user's own that cannot be used.
    """
    table = with_own_stages(STAGES, config.stages)
    known = [stage.name for stage in table]
    taken = {stage.name for stage in STAGES} - {SPEED.name}
    for name in config.stages:
        if name not in known:
            raise PipelineError(f"stages.{name} is no stage; {nearest(name, known)}")
        if name in taken:
            raise PipelineError(
                f"stages.{name} takes no settings; leave it out (those of the benchmark are stages.{SPEED.name})"
            )
    if SPEED.name in config.stages:
        given = config.stages[SPEED.name]
        Settings.of({} if given is None else given)  # also where it measures nothing
    return Run(config, table)


def _dataset(run: Run) -> Dataset:
    """PipelineError: as `load_dataset`; tells of metrics that need real pictures too, where there are none."""
    config = run.config
    try:
        return run.dataset
    except PipelineError as error:
        if config.dataset.pictures or not needs_real(config.metric):
            raise
        raise PipelineError(f"{error}; also, {without_real(config.metric, config.dataset.name)}") from error


def check_run(run: Run) -> None:
    """Whatever a key reads is looked at, and what cannot be computed is refused, before the first stage computes.

    Raises:
        PipelineError, EvalError, QuantizationError: what the user can mend.
    """
    make_cache(run.cache)
    run.method  # noqa: B018 - built for its checks
    component_methods(run)
    check_engine(run)
    check_processes(run)
    if not run.config.is_float:
        check_count(run.config.calibration, run.config.model.call.num_inference_steps)
    check_metrics(run.config.metric, _dataset(run))
    for name in wanted_stages(run):
        run.key(name)  # calls the user's functions, and reads files
    check_loadable(run)
    check_judges(run)
    advise(run)
    check_layers(run)


def wanted_stages(run: Run) -> list[str]:
    """In order, without those that are computed where others need them alone."""
    return [stage.name for stage in run.table if stage.asked and run.has(stage.name)]


def compute_run(run: Run) -> float | None:
    """All wanted stages in order, of a run that `check_run` has passed.

    Returns:
        The layer error if it is above `prune_above`, so that nothing behind quantizing was done; else None.

    Raises:
        PipelineError, EvalError, QuantizationError: what the user can mend.
    """
    wanted, above = wanted_stages(run), run.config.prune_above
    if above is not None and QUANTIZE.name in wanted and (error := layer_error(run)) is not None and error > above:
        return error
    for name in wanted:
        run.stage(name)
    return None


def run_all(run: Run) -> float | None:
    """As `check_run` and `compute_run`."""
    check_run(run)
    return compute_run(run)


def layer_error(run: Run) -> float | None:
    """Geometric mean over layers; None without layers of the denoiser, or with one of no error."""
    raw = json.loads((run.folder(QUANTIZE.name) / ERRORS).read_text(encoding="utf-8"))
    errors = list(raw["layer_errors"].values())
    if not errors or min(errors) <= 0:
        return None
    return math.exp(math.fsum(map(math.log, errors)) / len(errors))
