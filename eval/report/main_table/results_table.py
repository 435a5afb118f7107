from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from segquant_bench.eval.failures import Failure
from segquant_bench.eval.report.main_table.columns import Quantity, best_runs, columns, metric_names
from segquant_bench.eval.report.runs.groups import group_key, sort_runs
from segquant_bench.eval.report.runs.labels import labels, prompts_name, setups
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.table import DASH, Cell, Column, Row, Table, grouped

Keys = list[tuple[Column, Callable[[RunResult], str]]]
STAGE_COSTS = ("seconds", "peak_memory_mb")


def results_table(runs: Sequence[RunResult], judged: bool | None = None) -> Table:
    """One row per run, a group per precision, the best of each group in bold.

    `judged`: columns of the judgement (True), of size and cost (False), or all.
    """
    ordered = sort_runs(runs)
    shown = [quantity for quantity in columns(ordered) if judged in (None, quantity.judged)]
    best = [best_runs(quantity, ordered) for quantity in shown]
    keys = _keys(ordered)

    def to_row(run: RunResult) -> Row:
        found = [quantity.cell(run) or Cell(DASH) for quantity in shown]
        cells = [replace(cell, bold=id(run) in top) for cell, top in zip(found, best, strict=True)]
        return (*(Cell(get(run)) for _, get in keys), *cells)

    heads = (*(column for column, _ in keys), *(quantity.head for quantity in shown))
    return Table(heads, grouped(ordered, group_key, to_row))


def has_results(table: Table) -> bool:
    """Whether any column does more than name runs."""
    return any(column.kind == "number" for column in table.columns)


def _keys(runs: Sequence[RunResult]) -> Keys:
    names, sampling = labels(runs), setups(runs)
    every: Keys = [
        (Column("model", "key"), lambda run: run.model),
        (Column("dataset", "key"), lambda run: run.dataset),
        (Column("seed", "key"), lambda run: str(run.seed)),
        (Column("prompts", "key"), prompts_name),
        (Column("sampling", "key"), lambda run: sampling[id(run)]),
    ]
    return [
        *((column, get) for column, get in every if len({get(run) for run in runs}) > 1),
        (Column("precision", "key"), lambda run: run.precision or DASH),
        (Column("method", "key"), lambda run: names[id(run)]),
        (Column("n", "count"), lambda run: str(run.n_images)),
    ]


def export_table(runs: Sequence[RunResult], failures: Sequence[Failure] = ()) -> Table:
    """Every number of every run, then failed runs; for CSV."""
    ordered = sort_runs(runs)
    shown, names = columns(ordered), metric_names(ordered)
    stages = list(dict.fromkeys(stage for run in ordered for stage in run.stages))
    heads = [Column(key, "key") for key in ("model", "dataset", "seed", "precision", "method", "name", "n")]
    heads += [replace(quantity.head, title=quantity.key, intervals=quantity.judged) for quantity in shown]
    heads += [Column(f"{name}.delta", intervals=True) for name in names]
    heads += [Column(f"{stage}.{cost}") for stage in stages for cost in STAGE_COSTS]
    rows = [_export_row(run, shown, names, stages) for run in ordered]
    head = (*heads, Column("path", "key"))
    if failures:
        rows = [(*row, Cell("")) for row in rows] + [_failed_row(failure, len(head)) for failure in failures]
        head = (*head, Column("failure", "key"))
    return Table(head, (tuple(rows),))


def _failed_row(failure: Failure, width: int) -> Row:
    known = [failure.model, failure.dataset, failure.seed, failure.precision, "", failure.name]
    empty = [""] * (width - len(known) - 1)
    return tuple(Cell(text) for text in (*known, *empty, str(failure.path), failure.message))


def _export_row(run: RunResult, shown: Sequence[Quantity], names: Sequence[str], stages: Sequence[str]) -> Row:
    keys = (run.model, run.dataset, run.seed, run.precision, run.quantizer, run.name, run.n_images)
    costs = [run.stages.get(stage, {}).get(cost) for stage in stages for cost in STAGE_COSTS]
    return (
        *(Cell(str(key)) for key in keys),
        *(quantity.cell(run) or Cell("") for quantity in shown),
        *(_delta(run, name) for name in names),
        *(Cell("" if cost is None else str(cost)) for cost in costs),
        Cell(str(run.path)),
    )


def _delta(run: RunResult, name: str) -> Cell:
    metric = run.metric(name)
    if metric is None or metric.delta is None:
        return Cell("")
    return Cell("", value=metric.delta, interval=metric.delta_interval)
