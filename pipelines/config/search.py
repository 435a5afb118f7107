"""A sweep that searches: `hydra/sweeper=optuna`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from segquant_bench.pipelines.bounds import within
from segquant_bench.pipelines.config.arguments import with_open_keys
from segquant_bench.pipelines.config.objective import check_objective, directions
from segquant_bench.pipelines.config.sweeping import listed, opened
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.sweeps.launch import failure_of, raise_failure
from segquant_bench.pipelines.sweeps.study import Study, import_optuna

log = logging.getLogger(__name__)

NAMESPACE = "hydra_plugins.segquant_search"
"""As in `grids`."""


class SearchSweeper(Sweeper):
    """Jobs that Optuna draws, `n_jobs` at once, until the study in the sweep's folder has `n_trials`.

    Keys with several values are searched: ``quantizer=rtn,gptq``, ``quantizer.rank=range(8,65,8)``,
    ``quantizer.alpha=interval(0.2,0.9)``, ``tag(log,interval(1,100))``. Other settings: `Study`.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self, n_trials: int, n_jobs: int = 1, params: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        within("hydra.sweeper.n_trials", n_trials)
        within("hydra.sweeper.n_jobs", n_jobs)
        self.n_trials, self.n_jobs, self.params, self.settings = n_trials, n_jobs, dict(params or {}), settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        fixed, space = self._parsed([*with_open_keys([f"{k}={v}" for k, v in self.params.items()]), *arguments])
        check_objective(self.config.objective, self.config.metric.metrics)
        objectives = directions(self.config.objective)
        launch = opened(self)
        launch.keeps_folders = True  # trials are numbered through, also over several commands
        study = Study(launch.record.folder, objectives, space, **self.settings)
        wanted = int(min(self.n_trials, study.size))
        log.info("%d of %d trials are there", study.finished, wanted)
        if wanted < self.n_trials:
            log.info("the space has no more than %d points, all of which are tried", wanted)
        launch.record.total = max(wanted - study.finished, 0)
        failed: list[JobReturn] = []
        while (left := wanted - study.finished) > 0:
            asked = [study.ask() for _ in range(min(self.n_jobs, left))]
            above = study.prune_above()
            pruning = [] if above is None else [f"prune_above={above:.6g}"]
            jobs = [
                listed(self, [[*fixed, *(f"{key}={value}" for key, value in values.items()), *pruning]], number)[0]
                for number, values in asked
            ]
            for (number, _), job in zip(asked, jobs, strict=True):
                study.place(number, job.folder)
            results = launch.run(jobs, asked[0][0])
            for (number, _), job, result in zip(asked, jobs, results, strict=True):
                self._tell(study, number, job.folder, result)
            failed += [result for result in results if failure_of(result) is not None]
        for result in failed:
            raise_failure(result)
        return []

    def _parsed(self, overrides: list[str]) -> tuple[list[str], dict[str, Any]]:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        last = {override.get_key_element(): override for override in parser.parse_overrides(overrides)}
        searched = {key: override for key, override in last.items() if override.is_sweep_override()}
        if not searched:
            raise PipelineError(
                "hydra/sweeper=optuna has nothing to search; give a key several values, for example "
                "quantizer=rtn,gptq or 'quantizer.alpha=interval(0.2,0.9)'"
            )
        fixed = [f"{key}={each.get_value_element_as_str()}" for key, each in last.items() if key not in searched]
        return fixed, {key: distribution(override) for key, override in searched.items()}

    def _tell(self, study: Study, number: int, folder: str, result: JobReturn) -> None:
        error = failure_of(result)
        if error is not None:
            study.tell_failed(number, error, folder)
            return
        study.tell_value(number, result.return_value, folder)
        log.info("trial %d: %s", number, one_line(json.dumps(result.return_value)))


def distribution(override: Override) -> Any:
    """Optuna's for a key of several values: all of a list, whole numbers or a step of a range, or any of an interval.

    Raises:
        PipelineError: an interval that holds nothing, or has a tag other than log.
    """
    optuna, value, key = import_optuna(), override.value(), override.get_key_element()
    if not isinstance(value, IntervalSweep):
        if isinstance(value, RangeSweep) and all(isinstance(each, int) for each in value.range()):
            steps = list(value.range())
            return optuna.distributions.IntDistribution(steps[0], steps[-1], step=value.step)
        return optuna.distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    start, end = value.start, value.end
    if start is None or end is None or start >= end:
        raise PipelineError(f"{key}=interval({start},{end}) holds nothing; write interval(LOWEST,HIGHEST)")
    if value.tags - {"log"} or ("log" in value.tags and start <= 0):
        raise PipelineError(f"{key}: an interval takes no tag but log, and that one only above 0")
    kind = "Int" if isinstance(start, int) and isinstance(end, int) else "Float"
    return getattr(optuna.distributions, f"{kind}Distribution")(start, end, log="log" in value.tags)


def register() -> None:
    """Make it known to Hydra; conf/hydra/sweeper/optuna.yaml has its settings."""
    sys.modules[NAMESPACE] = sys.modules[__name__]
    SearchSweeper.__module__ = NAMESPACE
    Plugins.instance().register(SearchSweeper)
