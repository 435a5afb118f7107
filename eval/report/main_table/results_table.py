from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from segquant_bench.eval.report.main_table.best import best_runs
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.report.runs.groups import group_key, sort_runs
from segquant_bench.eval.report.runs.labels import labels, prompts_name, setups
from segquant_bench.eval.report.runs.sizes import by_bytes, size_letters
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.table import DASH, Cell, Column, Row, Table, grouped

Keys = list[tuple[Column, Callable[[RunResult], str]]]
WEIGHTS = "weight_mb"
"""Stands in both tables."""


def results_table(runs: Sequence[RunResult], judged: bool | None = None) -> Table:
    """One row per run, a group per precision in the order of bytes, the best of each group in bold.

    `judged`: columns of the judgement and bytes (True), of size and cost (False), or all.
    """
    ordered = by_bytes(sort_runs(runs))
    every = columns(ordered)
    shown = [each for each in every if judged in (None, each.judged)]
    shown += [each for each in every if judged and shown and each.key == WEIGHTS]
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
    names, sampling, sizes = labels(runs), setups(runs), size_letters(runs)
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
        *([(Column("size", "key"), lambda run: sizes[id(run)] or DASH)] if any(sizes.values()) else []),
        *([(Column("seeds", "count"), _seeds)] if any(run.seed_runs for run in runs) else []),
        (Column("n", "count"), lambda run: str(run.n_images)),
    ]


def _seeds(run: RunResult) -> str:
    return DASH if run.is_float else str(len(run.seed_runs) or 1)
