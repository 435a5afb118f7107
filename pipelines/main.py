"""`segquant [-m] key=value …`: one run, or a sweep."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segquant_bench.eval.jobs import PRUNED
from segquant_bench.pipelines.config.arguments import check_environment, check_overrides, check_text, with_open_keys
from segquant_bench.pipelines.config.explain import below_null, explain, memory_message
from segquant_bench.pipelines.config.flags import COMPLETION, MULTIRUN, flags_and_overrides
from segquant_bench.pipelines.config.labels import with_model_name
from segquant_bench.pipelines.config.precision import with_name
from segquant_bench.pipelines.config.quantizer import check_used
from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.searchpath import check_search_path, flagged, options
from segquant_bench.pipelines.config.shipped import check_shipped
from segquant_bench.pipelines.config.sweeping import JobCheck
from segquant_bench.pipelines.errors import OF_RUNS, PipelineError, is_disk_full, mendable, one_line, unwritable
from segquant_bench.pipelines.loggers.find import find_logger
from segquant_bench.pipelines.results.failure import clear_failure, log_to_file, write_failure
from segquant_bench.pipelines.results.sweep import (
    SweepFolder,
    claimed,
    place_in_sweep,
    refused_folder,
    report_sweep,
    shown_sweep,
)
from segquant_bench.pipelines.runtime.interrupt import exit_code, insistent_interrupt, signal_name
from segquant_bench.pipelines.runtime.paths import CONF
from segquant_bench.pipelines.runtime.quiet import quieten_absent_gpu
from segquant_bench.pipelines.sweeps.record import SweepRecord, job_record, tries_before

log = logging.getLogger(__name__)

EXIT_FAILED = 1
REPORT_FAILED = "the report could not be written: "

register()


_refused: list[PipelineError] = []
"""Of a single run: raised when Hydra has ended, which would print a line of its own."""


Value = float | list[float | None] | dict[str, float] | None
"""What a search is after: the objective, several of them, or the layer error of a run that was pruned."""


def job(config: DictConfig) -> Value:
    """One run: all stages, results.json, logger; or failure.json. In a sweep, raises PipelineError."""
    quieten_absent_gpu()
    os.chdir(HydraConfig.get().runtime.cwd)  # relative paths mean the same with hydra.job.chdir; Hydra changes back
    folder = Path(HydraConfig.get().runtime.output_dir)
    told: Path | None = refused_folder()  # the folder may be another run's
    if told is not None:
        clear_failure(told)
    try:
        # of a sweep's launcher that runs jobs in processes of their own, these are told to end as well
        with insistent_interrupt(), claimed(folder), job_record(folder, SweepFolder.sweep) as record:
            told = folder
            clear_failure(folder)
            value = record["value"] = _job(config, folder)
            if isinstance(value, dict):
                record["outcome"] = PRUNED
            return value
    except Exception as error:
        _fail(config, told, error)
        return None


def _fail(config: DictConfig, folder: Path | None, error: Exception) -> None:
    told: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # ${…} may lead nowhere
    message, overrides, cause = user_message(error), [*map(str, told)], mendable(error)
    if folder is not None:
        tries = max(1, tries_before(folder, SweepFolder.sweep))
        write_failure(folder, config, overrides, message or f"{type(error).__name__}: {error}", cause, tries)
    if message is None:
        raise error
    line = f"{one_line(' '.join(overrides))}: {message}" if overrides else message
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        log_to_file(line)
        _refused.append(PipelineError(message))
        return
    log.error("%s", line)
    refused = PipelineError(message)
    refused.mendable = cause
    raise refused from error


def _job(config: DictConfig, folder: Path) -> Value:
    place = place_in_sweep()
    checked = validate(config)
    if HydraConfig.get().mode is not RunMode.MULTIRUN:  # of a sweep, quantizer=none may stand beside others
        check_used(checked)
    check_shipped(checked)
    logger = find_logger(checked.logger)
    # put off: torch, which `segquant --help` and refused command lines do without
    from segquant_bench.pipelines.results.objective import objective_values
    from segquant_bench.pipelines.results.watched import run_watched
    from segquant_bench.pipelines.results.write import read_json
    from segquant_bench.pipelines.stages.benchmark import check_run, open_run

    run = open_run(checked)
    check_run(run)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    found = run_watched(run, logger, folder, group(folder), resolved, place)
    if isinstance(found, float):
        (folder / "results.json").unlink(missing_ok=True)  # of an earlier command
        log.info("no pictures: the layer error is %.4g, above prune_above=%g", found, checked.prune_above)
        return {PRUNED: found}
    values = objective_values(read_json(found), checked)
    return values[0] if len(values) == 1 else values


def group(folder: Path) -> str:
    """The W&B group: the sweep's folder, else the run's."""
    hydra_config = HydraConfig.get()
    return Path(hydra_config.sweep.dir).name if hydra_config.mode is RunMode.MULTIRUN else folder.name


def user_message(error: BaseException, places: str = OF_RUNS, room: str = "cache=DIRECTORY") -> str | None:
    """The sentence for an error that the user can mend; None for a program's fault.

    `places` and `room` are the command's settings of where it writes: for a folder that refuses, for a full disk.
    """
    if isinstance(error, PipelineError):
        return one_line(error)
    if is_disk_full(error):
        return f"the disk is full ({one_line(error)}); free some space or set {room} on another disk"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain(error)
    if _is_library_error(error):
        return one_line(error)
    return unwritable(error, places) or memory_message(error) or below_null(error)


def _is_library_error(error: BaseException) -> bool:
    # Without importing segquant or eval.
    for name, kind in (("segquant.errors", "QuantizationError"), ("segquant_bench.eval.errors", "EvalError")):
        module = sys.modules.get(name)
        if module is not None and isinstance(error, getattr(module, kind)):
            return True
    return False


def check_job(config: DictConfig) -> None:
    """PipelineError for a configuration that no job can begin with, wherever it would run."""
    checked = validate(config)
    if checked.stages:
        # put off: torch, as in a job
        from segquant_bench.pipelines.stages.benchmark import open_run

        open_run(checked)


JobCheck.of = staticmethod(check_job)
_run_hydra = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)


def _run() -> None:
    _refused.clear()
    _run_hydra()
    if _refused:
        raise _refused[0]


def _report() -> None:
    folder = report_sweep()
    if folder is not None:
        log.info("report: %s", one_line(str(folder / "report.html")))


def _succeeds(work: Callable[[], Any], prefix: str = "") -> bool:
    """Whether `work` ended; else one sentence on stderr. Program faults pass through."""
    try:
        work()
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"segquant: {prefix}{message}", file=sys.stderr)
        return False
    return True


def _prepare() -> None:
    check_text(sys.argv[1:])
    flags, overrides = flags_and_overrides(sys.argv[1:])
    check_environment(overrides)
    folders = check_search_path([*flags, *overrides])
    if COMPLETION not in flags:
        sweeps = MULTIRUN in flags or "hydra.mode=MULTIRUN" in overrides
        check_overrides(overrides, options([*folders, *flagged(flags)]), sweeps=sweeps)
    sys.argv[1:] = [*flags, *with_open_keys(with_model_name(with_name(overrides)))]


def main() -> None:
    """Exit 0, 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1, else 1; but for 0, one sentence on stderr."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing them
    try:
        with insistent_interrupt(), shown_sweep():
            succeeded = _run_and_report()
    except KeyboardInterrupt as error:
        print(
            f"segquant: ended by {signal_name(error)}; the same command goes on where this one stopped", file=sys.stderr
        )
        sys.exit(exit_code(error))
    sys.exit(0 if succeeded else EXIT_FAILED)


def _run_and_report() -> bool:
    refused = False
    try:
        finished = _succeeds(_prepare) and _succeeds(_run)
        # What lies in the folder of a sweep that had no job to run is another command's, and was reported then.
        refused = not finished and SweepRecord.current is not None and not SweepRecord.current.jobs
    except Exception:  # a fault of the program in one job: the others' results are worth a report
        _succeeds(_report, REPORT_FAILED)
        raise
    finally:
        if SweepRecord.current is not None:
            SweepRecord.current.end()
            SweepRecord.current = None
    return not refused and _succeeds(_report, REPORT_FAILED) and finished


if __name__ == "__main__":
    from segquant_bench.pipelines.main import main as imported_main

    imported_main()
