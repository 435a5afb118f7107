"""Which runs of a column are the best: bold."""

from __future__ import annotations

from collections.abc import Sequence

from segquant_bench.eval.report.main_table.columns import Quantity
from segquant_bench.eval.report.runs.groups import group_key
from segquant_bench.eval.report.runs.sizes import bytes_ratio, is_comparable, is_no_larger
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.table import Cell


def best_runs(quantity: Quantity, runs: Sequence[RunResult]) -> set[int]:
    """`id` of the best runs of each group, at their bytes.

    A run is the best if its interval lies apart, on the better side, from that of every other one of comparable bytes
    or fewer, and if one of these is of comparable bytes. So a group may have several (the best of few bytes, the best
    of more), or none. A run without interval or bytes is never the best, nor is one whose rival has no interval.
    """
    if quantity.head.direction is None or not quantity.judged:
        return set()
    groups: dict[object, list[tuple[RunResult, Cell]]] = {}
    for run in runs:
        cell = quantity.cell(run)
        if cell is not None and cell.value is not None and not run.is_float:
            groups.setdefault(group_key(run), []).append((run, cell))
    return {
        id(run)
        for members in groups.values()
        for run, cell in members
        if _is_best(run, cell, [each for each in members if each[0] is not run], quantity.head.direction)
    }


def _is_best(run: RunResult, cell: Cell, others: Sequence[tuple[RunResult, Cell]], direction: str) -> bool:
    ratios = [(bytes_ratio(other, run), theirs) for other, theirs in others]
    rivals = [theirs for ratio, theirs in ratios if ratio is None or is_no_larger(ratio)]
    return any(is_comparable(ratio) for ratio, _ in ratios) and all(_apart(cell, rival, direction) for rival in rivals)


def _apart(ours: Cell, theirs: Cell, direction: str) -> bool:
    if ours.interval is None or theirs.interval is None:
        return False
    return ours.interval[1] < theirs.interval[0] if direction == "lower" else ours.interval[0] > theirs.interval[1]
