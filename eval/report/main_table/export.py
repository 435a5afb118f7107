"""The table for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from segquant_bench.eval.failures import Failure
from segquant_bench.eval.report.main_table.columns import columns, metric_names
from segquant_bench.eval.report.runs.groups import sort_runs
from segquant_bench.eval.report.runs.seeds import calibration_seed
from segquant_bench.eval.report.runs.sizes import by_bytes, size_letters
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.table import Cell, Column, Row, Table

STAGE_COSTS = ("seconds", "peak_memory_mb")
KEYS = ("model", "dataset", "seed", "precision", "method", "name", "n", "size")
SEEDED = ("calibration_seed",)


def export_table(runs: Sequence[RunResult], failures: Sequence[Failure] = ()) -> Table:
    """Every number of every run, then failed runs; for CSV.

    Runs of several calibration seeds have a line together (``0+1+2``), then one each.
    """
    ordered = [each for run in by_bytes(sort_runs(runs)) for each in (run, *run.seed_runs)]
    seeded = any(run.seed_runs for run in ordered)
    shown, names, sizes = columns(ordered), metric_names(ordered), size_letters(runs)
    stages = list(dict.fromkeys(stage for run in ordered for stage in run.stages))
    heads = [Column(key, "key") for key in (*KEYS, *(SEEDED if seeded else ()))]
    heads += [replace(each.head, title=each.key, intervals=each.judged, spread=seeded) for each in shown]
    heads += [Column(f"{name}.delta", intervals=True) for name in names]
    heads += [Column(f"{stage}.{cost}") for stage in stages for cost in STAGE_COSTS]
    rows = [
        (
            *map(Cell, _keys(run, sizes.get(id(run), ""), seeded)),
            *(quantity.cell(run) or Cell("") for quantity in shown),
            *(_delta(run, name) for name in names),
            *_costs(run, stages),
            Cell("" if run.seed_runs else str(run.path)),
        )
        for run in ordered
    ]
    head = (*heads, Column("path", "key"))
    if failures:
        rows = [(*row, Cell("")) for row in rows] + [_failed_row(failure, len(head)) for failure in failures]
        head = (*head, Column("failure", "key"))
    return Table(head, (tuple(rows),))


def _keys(run: RunResult, size: str, seeded: bool) -> list[str]:
    found = [run.model, run.dataset, str(run.seed), run.precision, run.quantizer, run.name, str(run.n_images), size]
    if seeded:
        seeds = [calibration_seed(each) for each in run.seed_runs or (run,)]
        found += ["+".join(str(seed) for seed in seeds if seed is not None)]
    return found


def _costs(run: RunResult, stages: Sequence[str]) -> list[Cell]:
    costs = [run.stages.get(stage, {}).get(cost) for stage in stages for cost in STAGE_COSTS]
    return [Cell("" if cost is None or run.seed_runs else str(cost)) for cost in costs]


def _failed_row(failure: Failure, width: int) -> Row:
    known = [failure.model, failure.dataset, failure.seed, failure.precision, "", failure.name]
    empty = [""] * (width - len(known) - 1)
    return tuple(Cell(text) for text in (*known, *empty, str(failure.path), failure.message))


def _delta(run: RunResult, name: str) -> Cell:
    metric = run.metric(name)
    if metric is None or metric.delta is None:
        return Cell("")
    return Cell("", value=metric.delta, interval=metric.delta_interval)
