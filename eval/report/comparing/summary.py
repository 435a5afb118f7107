from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from segquant_bench.eval.metrics.registry import known_metric
from segquant_bench.eval.report.comparing.pairs import Comparison
from segquant_bench.eval.tables.render_markdown import escape
from segquant_bench.eval.tables.table import Cell, Column, Row, Table, heads

LAYER_ERROR = "layer error"
VERDICTS = {
    "better": "better than",
    "not distinguishable": "not distinguishable from",
    "worse": "worse than",
}
FEW = 6
HEAD = """# Paired comparisons

Each comparison pairs two runs of the same model, prompts, latents and precision, picture by picture (or layer
by layer, or denoiser call by denoiser call), and gives the first run's value minus the second's, or for errors
their ratio, with a 95 % paired bootstrap interval. *Better* and *worse* mean that the interval leaves zero
(or ×1) out.
"""
NOTHING = "No run of SegQuant or auto stands beside another method at the same precision: nothing to compare."


def comparisons_table(comparisons: Sequence[Comparison]) -> Table:
    keys = heads(("where", "precision", "a", "b", "metric", "kind"), ())
    rows = tuple(_row(comparison) for comparison in comparisons)
    behind = heads((), ("unit", "n", "paired over", "verdict"))
    return Table((*keys, Column("value", intervals=True), *behind), (rows,))


def _row(c: Comparison) -> Row:
    keys = (c.where, c.precision, c.ours, c.theirs, c.metric, c.kind)
    behind = (c.unit, str(c.n), c.pairs, c.verdict)
    return (*map(Cell, keys), Cell(c.amount, value=c.value, interval=c.interval), *map(Cell, behind))


def is_headline(comparison: Comparison) -> bool:
    metric = known_metric(comparison.metric)
    return comparison.metric == LAYER_ERROR or (metric is not None and metric.headline)


def comparisons_markdown(
    comparisons: Sequence[Comparison], refused: Sequence[str], full: str = "comparisons.csv"
) -> str:
    """What ours are better than: a heading per precision, a line per method and main number.

    `refused` are sentences on what could not be compared.
    """
    told = [c for c in comparisons if c.headline and is_headline(c)]
    lines = [
        *HEAD.splitlines(), "",
        "Here are methods of ours against others at the main numbers (where more than six share a verdict, by name",
        f"only). All {len(comparisons)} comparisons, ablations and differences to the unquantized model included, are",
        f"in [{full}]({full}).",
    ]  # fmt: skip
    for setting, members in groupby(told, lambda c: c.setting):
        lines += ["", f"## {escape(setting)}", "", *_lines(list(members))]
    if not told:
        lines += ["", NOTHING]
    lines += [line for sentence in refused for line in ("", f"Not compared: {escape(sentence)}")]
    return "\n".join(lines) + "\n"


def _lines(comparisons: Sequence[Comparison]) -> list[str]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in comparisons:
        groups.setdefault((c.ours, c.metric), []).append(c)
    return [f"- {escape(ours)}, {escape(metric)}: {_verdicts(members)}" for (ours, metric), members in groups.items()]


def _verdicts(comparisons: Sequence[Comparison]) -> str:
    """``better than rtn +4.26 dB [+3.92, +4.64]; not distinguishable from gptq …``."""
    found = []
    for verdict, told in VERDICTS.items():
        members = [c for c in comparisons if c.verdict == verdict]
        if members:
            amounts = [f" {c.amount}" if len(members) <= FEW else "" for c in members]
            others = ", ".join(f"{escape(c.theirs)}{text}" for c, text in zip(members, amounts, strict=True))
            found.append(f"{told} {others}")
    return "; ".join(found)
