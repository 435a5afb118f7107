from __future__ import annotations

from collections.abc import Sequence

from segquant_bench.eval.metrics.registry import known_metric
from segquant_bench.eval.report.comparing.adjust import ADJUSTMENTS
from segquant_bench.eval.report.comparing.comparison import AGAINST, TIE, Comparison
from segquant_bench.eval.report.runs.sizes import SHARE
from segquant_bench.eval.tables.render_markdown import escape
from segquant_bench.eval.tables.table import Cell, Column, Row, Table, heads

LAYER_ERROR = "layer error"
AHEAD, BEHIND = "ahead of", "behind"
LARGER, SMALLER = "better, with more bytes, than", "worse, with fewer bytes, than"
WORDS = (AHEAD, "better than", LARGER, "not distinguishable from", BEHIND, "worse than", SMALLER)
"""What is told of a comparison; "better than" and "worse than" where bytes are unknown."""
FEW = 6
NONE = {"difference": 0.0, "ratio": 1.0}
"""The value of no difference."""
HEAD = """# Paired comparisons

Each comparison pairs two runs of the same model, {same}, picture by picture (or layer
by layer, or held-out prompt by prompt), and gives the first run's value minus the second's, or for errors
their ratio, with a 95 % paired interval. *Better* and *worse* mean that the interval leaves zero
(or ×1) out, and that the p-value stays below 5 % when it is adjusted for all comparisons. *Ahead* is better at
comparable bytes or fewer: at most {share:g} % more than the other has.
"""
SAME, SAME_BUT_PRECISION = "prompts, latents and precision", "prompts and latents"
NOTHING = "No run of SegQuant or auto stands beside another method at the same precision: nothing to compare."
SEEDS = (
    "Runs of several calibration seeds are compared seed by seed. Their value is the mean; their interval adds up "
    "those over pairs (the mean of the seeds' own) and over seeds (Student's), half-widths in quadrature."
)


def adjustment_note(comparisons: Sequence[Comparison], adjustment: str) -> str:
    """How many comparisons there are, and what adjusting for that leaves of them."""
    apart = sum(each.interval[0] > NONE[each.kind] or each.interval[1] < NONE[each.kind] for each in comparisons)
    kept = sum(each.verdict != TIE for each in comparisons)
    return (
        f"{len(comparisons)} comparisons were made; by their own intervals {apart} of them would be better or worse, "
        f"adjusted by {ADJUSTMENTS[adjustment][0]} {kept} are."
    )


def comparisons_table(comparisons: Sequence[Comparison]) -> Table:
    keys = heads(("where", "precision", "a", "b", "metric", "kind"), ())
    rows = tuple(_row(comparison) for comparison in comparisons)
    seeded = any(comparison.seeds > 1 for comparison in comparisons)
    behind = heads((), ("unit", "n", "paired over", "verdict", "p", "adjusted p", "bytes", "ahead", "seeds"))
    return Table((*keys, Column("value", intervals=True, spread=seeded), *behind), (rows,))


def _row(c: Comparison) -> Row:
    keys = (c.where, c.precision, c.ours, c.theirs, c.metric, c.kind)
    known = map(_digits, (c.p, c.adjusted, c.size_ratio))
    behind = (c.unit, str(c.n), c.pairs, c.verdict, *known, c.ahead, str(c.seeds))
    return (*map(Cell, keys), Cell(c.amount, value=c.value, interval=c.interval, sd=c.sd), *map(Cell, behind))


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def is_headline(comparison: Comparison) -> bool:
    metric = known_metric(comparison.metric)
    return comparison.metric == LAYER_ERROR or (metric is not None and metric.headline)


def comparisons_markdown(
    comparisons: Sequence[Comparison],
    refused: Sequence[str],
    full: str = "comparisons.csv",
    *,
    adjustment: str = "holm",
    chosen: bool = False,
) -> str:
    """What ours (or those that the user chose) are better than: a heading per precision, a line per method and number.

    `refused` are sentences on what could not be compared.
    """
    told = [c for c in comparisons if c.headline and is_headline(c)]
    who = "the chosen methods" if chosen else "methods of ours against others"
    same = SAME_BUT_PRECISION if any(AGAINST in c.precision for c in comparisons) else SAME
    lines = [
        *HEAD.format(share=100 * SHARE, same=same).splitlines(), "",
        *([SEEDS, ""] if any(c.seeds > 1 for c in comparisons) else []),
        *([adjustment_note(comparisons, adjustment), ""] if comparisons else []),
        f"Here are {who} at the main numbers (where more than six share a verdict, by name",
        f"only). All {len(comparisons)} comparisons, ablations and differences to the unquantized model included, are",
        f"in [{full}]({full}).",
    ]  # fmt: skip
    settings: dict[str, list[Comparison]] = {}
    for c in told:
        settings.setdefault(c.setting, []).append(c)
    for setting, members in settings.items():
        lines += ["", f"## {escape(setting)}", "", *_lines(members)]
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
    """``ahead of rtn +4.26 dB [+3.92, +4.64]; not distinguishable from gptq …``."""
    found = []
    for word in WORDS:
        members = [c for c in comparisons if _word(c) == word]
        if members:
            amounts = [f" {c.amount}" if len(members) <= FEW else "" for c in members]
            sizes = [f" (×{c.size_ratio:.2f} bytes)" if word in (LARGER, SMALLER) else "" for c in members]
            told = zip(members, amounts, sizes, strict=True)
            found.append(f"{word} {', '.join(f'{escape(c.theirs)}{amount}{size}' for c, amount, size in told)}")
    return "; ".join(found)


def _word(c: Comparison) -> str:
    if c.verdict == TIE:
        return "not distinguishable from"
    if c.size_ratio is None:
        return f"{c.verdict} than"
    return {("better", "a"): AHEAD, ("worse", "b"): BEHIND, ("better", ""): LARGER, ("worse", ""): SMALLER}[
        c.verdict, c.ahead
    ]
