"""The table with the columns that a paper has room for."""

from __future__ import annotations

from collections.abc import Sequence

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.runs.groups import sort_runs
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.table import Row, Table
from segquant_bench.hints import nearest

COUNTED = ("size", "seeds", "n")
"""Key columns that are there only where they are asked for."""


def paper_table(runs: Sequence[RunResult], asked: Sequence[str] = ()) -> Table:
    """What tells runs apart, and the columns `asked` for, in that order; those of judgement and bytes if none is.

    A column goes by its title (``psnr``), by title and network (``fid_ref [net]``), or as table.csv calls it.

    Raises:
        EvalError: a column is unknown.
    """
    if not asked:
        return results_table(runs, judged=True)
    table = results_table(runs)
    keys = [""] * len(table.columns)
    quantities = columns(sort_runs(runs))
    keys[len(keys) - len(quantities) :] = [quantity.key for quantity in quantities]
    names = [{column.title, column.name, key} - {""} for column, key in zip(table.columns, keys, strict=True)]
    places = [index for index, column in enumerate(table.columns) if not keys[index] and column.title not in COUNTED]
    for name in asked:
        found = [index for index, known in enumerate(names) if name in known]
        if not found:
            raise EvalError(f"the table has no column {name!r}; {nearest(name, sorted(set().union(*names)))}")
        places += [index for index in found if index not in places]

    def chosen(row: Row) -> Row:
        return tuple(row[index] for index in places)

    heads = tuple(table.columns[index] for index in places)
    return Table(heads, tuple(tuple(map(chosen, group)) for group in table.groups))
