"""An Optuna study in the sweep's folder: draws trials, and keeps what came of them."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.files import save_json
from segquant_bench.eval.jobs import DONE, JOB, PRUNED, Job, load_job
from segquant_bench.eval.study import FILE
from segquant_bench.pipelines.bounds import within
from segquant_bench.pipelines.errors import PipelineError, one_line, one_of
from segquant_bench.pipelines.sweeps.record import from_json

NAME = "segquant"
JOURNAL = "study.log"
"""Optuna's own record, to which lines are added only; fit for shared disks."""
SAMPLERS = ("tpe", "nsga2", "random")
LAYER_ERROR, FOLDER, WHY = "layer_error", "folder", "why"
AGAIN, REPEAT = "again", "repeat"
"""Marks a trial in place of one that a kill cut short; and a draw that was there before, so that no job ran."""


def import_optuna() -> Any:
    """PipelineError where it is not installed."""
    try:
        import optuna  # an extra, which takes a second
    except ImportError as error:
        raise PipelineError(
            "hydra/sweeper=optuna needs Optuna, which is not installed; run pip install '.[search]' in a "
            "clone of segquant"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Study:
    """Trials of a search space.

    Args:
        objectives: names of what is searched, with "minimize" or "maximize".
        space: Optuna's distributions by key of the configuration.
        prune, warm_up: see conf/hydra/sweeper/optuna.yaml.

    Raises:
        PipelineError: the folder has a study of something else or a damaged one, or settings are out of range.
    """

    def __init__(
        self, folder: Path, objectives: Mapping[str, str], space: Mapping[str, Any], *, sampler: str = "tpe",
        seed: int = 0, prune: float | None = 2.0, warm_up: int = 5,
    ) -> None:  # fmt: skip
        optuna = import_optuna()
        one_of("hydra.sweeper.sampler", sampler, SAMPLERS)
        within("hydra.sweeper.warm_up", warm_up)
        if prune is not None:
            within("hydra.sweeper.prune", prune)
        self.folder, self.objectives, self.space = folder, dict(objectives), dict(space)
        self.prune, self.warm_up, self._states, self._seed = prune, warm_up, optuna.trial.TrialState, seed
        self.choices = {key: _choices(each) for key, each in self.space.items()}
        self.trials: dict[int, Any] = {}
        asked = {"objectives": self.objectives, "space": self._space_text(optuna)}
        try:
            self.study = self._opened(optuna, sampler, seed, asked)
            self._take_up(optuna)
        except (PipelineError, OSError):
            raise
        except Exception as error:  # of a damaged journal, Optuna raises what its code runs into
            raise PipelineError(
                f"{folder / JOURNAL} is damaged ({type(error).__name__}: {one_line(error)[:200]}); move it away, and "
                "the search begins anew, with what its jobs left in the cache"
            ) from error

    def _opened(self, optuna: Any, sampler: str, seed: int, asked: Mapping[str, Any]) -> Any:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(self.folder / JOURNAL)))
        known = {summary.study_name for summary in optuna.get_all_study_summaries(storage)}
        begun = 0
        if known:
            before = optuna.load_study(study_name=NAME, storage=storage)
            self._check(before.user_attrs, asked)
            begun = len(before.trials)
        study = optuna.create_study(
            study_name=NAME, storage=storage, directions=list(self.objectives.values()), load_if_exists=True,
            sampler=_sampler(optuna, sampler, seed + begun),
        )  # fmt: skip
        for key, value in asked.items():
            study.set_user_attr(key, value)
        return study

    def _space_text(self, optuna: Any) -> dict[str, str]:
        return {key: optuna.distributions.distribution_to_json(each) for key, each in sorted(self.space.items())}

    def _check(self, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        differing = [key for key, value in asked.items() if known.get(key) != json.loads(json.dumps(value))]
        if differing:
            raise PipelineError(
                f"{self.folder / JOURNAL} is a search with other {' and '.join(differing)}; go on with those, or "
                "choose another place with hydra.sweep.dir=DIRECTORY"
            )

    def _take_up(self, optuna: Any) -> None:
        """Trials that a killed process left are drawn again, unless their job had ended."""
        for trial in self.study.get_trials(states=(self._states.RUNNING,)):
            self.trials[trial.number] = optuna.trial.Trial(self.study, trial._trial_id)
            folder = trial.user_attrs.get(FOLDER) or ""
            job = _ended(self.folder / folder / JOB) if folder else None
            if job is not None:
                self.tell_value(trial.number, from_json(job.value), folder)
                continue
            self.study.tell(trial.number, state=self._states.FAIL)
            self.study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})

    @property
    def finished(self) -> int:
        """Trials that need no further one: all but repeats and those that a killed process left."""
        return len(self._own_trials())

    @property
    def size(self) -> float:
        """How many points the space has; infinite with an interval of floats."""
        return math.prod(math.inf if each is None else len(each) for each in self.choices.values())

    def _own_trials(self) -> list[Any]:
        trials, waiting = self.study.trials, self._states.WAITING
        left = {trial.user_attrs.get(AGAIN) for trial in trials}  # also by those that wait to be asked for
        left |= {trial.number for trial in trials if trial.state == waiting or trial.user_attrs.get(REPEAT)}
        return [trial for trial in trials if trial.number not in left]

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Number and values of the next trial; of a finite space, a point that was not there yet."""
        trial = self.study.ask(self.space)
        known = {_point(each.params) for each in self._own_trials() if each.number != trial.number}
        if _point(trial.params) in known and len(known) < self.size < math.inf:
            trial.set_user_attr(REPEAT, True)
            self.study.tell(trial, state=self._states.FAIL)  # which no sampler learns from
            self.study.enqueue_trial(self._untried(known))
            trial = self.study.ask(self.space)
        self.trials[trial.number] = trial
        return trial.number, dict(trial.params)

    def _untried(self, known: set[str]) -> dict[str, Any]:
        """A random point that is not `known`; of a space that is nearly used up, the first in order."""
        draw, values = random.Random(self._seed + len(known)), [list(each or ()) for each in self.choices.values()]
        drawn = ([draw.choice(each) for each in values] for _ in range(100))
        for point in itertools.chain(drawn, itertools.product(*values)):
            found = dict(zip(self.choices, point, strict=True))
            if _point(found) not in known:
                return found
        raise AssertionError("the space is used up")  # not where `ask` calls it

    def prune_above(self) -> float | None:
        """The layer error above which no pictures are made; None before enough trials are finished."""
        done = self.study.get_trials(states=(self._states.COMPLETE, self._states.PRUNED))
        errors = [trial.user_attrs[LAYER_ERROR] for trial in done if trial.user_attrs.get(LAYER_ERROR)]
        if self.prune is None or len(errors) < self.warm_up:
            return None
        return float(self.prune * statistics.median(errors))

    def place(self, number: int, folder: str) -> None:
        """Where a trial's job runs, relative to the study's folder: behind a kill, the next process looks there."""
        self._note(number, {FOLDER: folder})

    def tell_value(self, number: int, value: Any, folder: str) -> None:
        """What a job returned: its objectives, one or a list, or the layer error of one that was pruned."""
        if isinstance(value, dict):
            self.tell_pruned(number, value[PRUNED], folder)
            return
        values = value if isinstance(value, list) else [value]
        if None in values:
            self.tell_failed(number, PipelineError("it has no value of an objective"), folder)
        else:
            self.tell(number, values, _layer_error(self.folder / folder) if folder else None, folder)

    def tell(self, number: int, values: Sequence[float], layer_error: float | None, folder: str) -> None:
        self._note(number, {LAYER_ERROR: layer_error, FOLDER: folder})
        self.study.tell(self.trials[number], list(values))
        self._write()

    def tell_pruned(self, number: int, layer_error: float, folder: str) -> None:
        self._note(number, {LAYER_ERROR: layer_error, FOLDER: folder})
        # of several objectives Optuna prunes none
        state = self._states.PRUNED if len(self.objectives) == 1 else self._states.FAIL
        self._note(number, {"pruned": True})
        self.study.tell(self.trials[number], state=state)
        self._write()

    def tell_failed(self, number: int, error: BaseException, folder: str) -> None:
        self._note(number, {WHY: one_line(error), FOLDER: folder})
        self.study.tell(self.trials[number], state=self._states.FAIL)
        self._write()

    def _note(self, number: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self.trials[number].set_user_attr(key, value)

    def _write(self) -> None:
        """For the report."""
        trials = [
            {
                "number": trial.number, "folder": trial.user_attrs.get(FOLDER, ""), "params": trial.params,
                "state": "pruned" if trial.user_attrs.get("pruned") else trial.state.name.lower(),
                "values": [str(value) if abs(value) == float("inf") else value for value in trial.values or ()],
                "layer_error": trial.user_attrs.get(LAYER_ERROR),
            }
            for trial in self.study.trials
            if trial.state.is_finished() and not trial.user_attrs.get(REPEAT)
        ]  # fmt: skip
        save_json(self.folder / FILE, {"schema": 1, "objectives": self.objectives, "trials": trials})


def _ended(path: Path) -> Job | None:
    """The record of a job that came to a value; None of one that did not."""
    try:
        job = load_job(path)
    except (EvalError, OSError):  # the kill came before it, or while it was written
        return None
    return job if job.outcome in (DONE, PRUNED) and job.value is not None else None


def _layer_error(folder: Path) -> float | None:
    """Of a finished run."""
    raw = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found = (raw.get("layer_error") or {}).get("geometric_mean")
    return None if found is None else float(found)


def _point(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), sort_keys=True)


def _choices(distribution: Any) -> Sequence[Any] | None:
    """What a key can be; None for an interval of floats."""
    if hasattr(distribution, "choices"):
        choices: Sequence[Any] = distribution.choices
        return choices
    whole = isinstance(distribution.low, int)
    return range(distribution.low, distribution.high + 1, distribution.step) if whole else None


def _sampler(optuna: Any, name: str, seed: int) -> Any:
    kinds = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "random": "RandomSampler"}
    return getattr(optuna.samplers, kinds[name])(seed=seed)
