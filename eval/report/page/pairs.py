"""Paired comparisons behind the cells of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segquant_bench.eval.report.comparing.comparison import Comparison

NO_ROW = -1
"""Stands for the unquantized model's pictures."""
COLUMNS = {"layer error": "layer_error", "output error": "output_error"}
"""Column keys of what comparisons call otherwise."""
VERDICTS = ("better", "worse", "not distinguishable")


def pairs_data(comparisons: Sequence[Comparison], rows: Mapping[Path, int]) -> dict[str, Any]:
    """For scripts, in short: each pair is [a, b, metric, amount, verdict, ahead, bytes, n, p]."""
    metrics = list(dict.fromkeys(COLUMNS.get(c.metric, c.metric) for c in comparisons))
    places = {key: index for index, key in enumerate(metrics)}
    found = []
    for c in comparisons:
        first = rows.get(c.path) if c.path is not None else None
        second = NO_ROW if c.other is None else rows.get(c.other)
        if first is not None and second is not None:
            found.append([
                first, second, places[COLUMNS.get(c.metric, c.metric)], c.amount, VERDICTS.index(c.verdict),
                {"a": 1, "b": 2, "": 0}[c.ahead], "" if c.size_ratio is None else f"×{c.size_ratio:.2f}", c.count,
                "" if c.adjusted is None else f"{c.adjusted:.2g}",
            ])  # fmt: skip
    return {"metrics": metrics, "verdicts": VERDICTS, "pairs": found}
