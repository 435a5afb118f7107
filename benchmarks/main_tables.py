"""Rows of docs/main and docs/families: which runs they show, under which names, and the tables of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.pages import Line, figures, markdown
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.runs.groups import quantized_parts, sort_runs
from segquant_bench.eval.report.runs.labels import labels, method_name, places
from segquant_bench.eval.report.runs.sizes import by_bytes, is_no_larger
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.numbers import format_difference, format_ratio
from segquant_bench.eval.tables.table import DASH, Cell

BUDGETED = {"auto": 1.1, "gptq_mixed": 1.0}
"""Methods whose rows tell their budget, with the usual one: bytes against rounding's."""
HEADS = {
    "weights": "weights, MB", "fid_ref": "fid_ref ↓", "psnr": "psnr, dB ↑", "layer error": "layer error ↓",
    "output error": "output error ↓", "other components' error": "ControlNet's output error ↓",
    "quantize": "quantizing, s",
}  # fmt: skip
"""What the report's columns are called here."""
MEANS = ("weights", "quantize")
"""Columns without their spread over seeds: bytes differ by next to nothing, seconds by what else ran."""
METRICS = {"psnr": "psnr, dB", "fid_ref": "fid_ref", "output error": "output error, ratio"}
"""Of pairs."""
HIGHER = ("psnr",)
"""Of these, higher is better."""
LEAST_P, NO_P = 0.001, 0.995
"""Not told more exactly."""


@dataclass(frozen=True)
class Row:
    """One run, or all seeds of one.

    Attributes:
        name: the method's on the page, with its budget if it has one: ``auto, 1.1 × bytes``.
        label, where: what comparisons.csv calls it and its place.
        parts: quantized components.
        cells: by the titles of the report's columns; bold as there.
    """

    model: str
    precision: str
    method: str
    name: str
    label: str
    where: str
    parts: tuple[str, ...]
    is_tool: bool
    seeds: int
    cells: Mapping[str, Cell]

    @property
    def told(self) -> str:
        """What `segquant-report --pairs` calls it."""
        return f"{self.label} at {self.precision}"

    @property
    def place(self) -> tuple[str, str]:
        """Where it is compared."""
        return (self.model, self.precision)

    def value(self, title: str) -> float:
        """Of a column; infinity where it has none."""
        cell = self.cells.get(title)
        return float("inf") if cell is None or cell.value is None else cell.value


Couple = tuple[str, Row, Row]
"""Two rows to compare, and what the page calls them."""


def rows_of(runs: Sequence[RunResult]) -> list[Row]:
    """Of quantized runs in the order of precisions, of fewest bytes first, then by name.

    Raises:
        ValueError: two runs of one model and precision would have the same name.
    """
    ordered = by_bytes(sort_runs(runs))
    table, quantized = results_table(runs), [run for run in ordered if not run.is_float]
    told, where = labels(quantized), places(quantized)
    titles = [column.title for column in table.columns]
    rows = [
        Row(run.model, run.precision, run.quantizer, page_name(run), told[id(run)], where[id(run)],
            quantized_parts(run), run.has_own_layers, len(run.seed_runs) or 1, dict(zip(titles, cells, strict=True)))
        for run, cells in zip(ordered, table.rows, strict=True) if not run.is_float
    ]  # fmt: skip
    names = [(*row.place, row.name) for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"two runs are called {twice}: give folders of the one experiment")
    order = list(dict.fromkeys(row.place for row in rows))
    return sorted(rows, key=lambda row: (order.index(row.place), row.value("weights"), row.name))


def page_name(run: RunResult) -> str:
    """The method as the page calls it, with the budget of those that have one."""
    budget = run.config["quantizer"].get("budget") if run.quantizer in BUDGETED else None
    if not budget:
        return method_name(run)
    bits = budget.get("average_bits")
    return f"{method_name(run)}, {budget['bytes']} × bytes" + (f", {bits} bits on average" if bits else "")


def chosen(rows: Iterable[Row], methods: Mapping[str, str], *, tool: bool = False) -> list[Row]:
    """Rows of the methods at precisions that start with their values.

    Args:
        tool: also the other people's tool of least fid_ref, at every precision that has one.
    """
    rows = list(rows)
    best: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row.value("fid_ref")):
        if row.is_tool and tool:
            best.setdefault(row.place, row)
    return [row for row in rows if row.precision.startswith(methods.get(row.method, "-")) or row in best.values()]


def rows_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A line per row; the model where there are several, and a model's or a precision's name once."""
    if not rows:
        return "None has run.\n"
    keys = ["model", "precision"] if len({row.model for row in rows}) > 1 else ["precision"]
    lines, before = [], None
    for row in rows:
        last = row.place[-len(keys) :]
        shown = [] if before is None else [a == b for a, b in zip(last, before, strict=True)]
        hidden = [all(shown[: at + 1]) if shown else False for at in range(len(last))]
        lines.append([
            *("" if hide else name for name, hide in zip(last, hidden, strict=True)),
            row.name + (" (tool)" if row.is_tool else ""), str(row.seeds),
            *(cell_text(row.cells.get(title), title) for title in columns),
        ])  # fmt: skip
        before = last
    heads = [*keys, "method", "seeds", *(HEADS[title] for title in columns)]
    return markdown(heads, lines, lambda head: head == "seeds" or head in HEADS.values())


def cell_text(cell: Cell | None, title: str) -> str:
    """Mean, spread over seeds and interval; a dash for what was not measured."""
    if cell is None or cell.value is None:
        return DASH
    value = f"**{figures(cell.value)}**" if cell.bold else figures(cell.value)
    spread = "" if cell.sd is None or title in MEANS else f" ± {figures(cell.sd, 2)}"
    low_high = "" if cell.interval is None else f" [{', '.join(map(figures, cell.interval))}]"
    return value + spread + low_high


def couples(rows: Sequence[Row], pairs: Iterable[tuple[str, str]]) -> Iterator[Couple]:
    """Fixed pairs by their names, wherever both ran."""
    named = {(*row.place, row.name): row for row in rows}
    for ours, theirs in pairs:
        for place in dict.fromkeys(row.place for row in rows):
            if (a := named.get((*place, ours))) is not None and (b := named.get((*place, theirs))) is not None:
                yield f"{ours} against {theirs}", a, b


def pairs_table(pairs: Iterable[Couple], comparisons: Iterable[Line]) -> str:
    """The first of each against the second."""
    found = {(c["where"], c["precision"], c["a"], c["b"], c["metric"].partition("[")[0]): c for c in comparisons}
    pairs, lines = list(pairs), []
    models = {a.model for _, a, _ in pairs}
    for title, a, b in pairs:
        made = [found.get((a.where, a.precision, a.label, b.label, metric)) for metric in METRICS]
        if any(made):
            keys = [title, *([a.model] if len(models) > 1 else []), a.precision]
            lines.append([*keys, figures(a.value("weights") / b.value("weights")), *map(pair_text, made)])
    if not lines:
        return "None has run.\n"
    keys = ["pair", *(["model"] if len(models) > 1 else []), "precision", "bytes, ratio"]
    return markdown([*keys, *METRICS.values()], lines, lambda head: head == "bytes, ratio")


def pair_text(pair: Line | None) -> str:
    """Difference or ratio with its interval, the adjusted p-value, and who is ahead."""
    if pair is None:
        return DASH
    value, low, high = (float(pair[key]) for key in ("value", "value.low", "value.high"))
    form: Callable[..., str] = format_ratio if pair["kind"] == "ratio" else format_difference
    p = float(pair["adjusted p"])
    told = f"p < {figures(LEAST_P, 1)}" if p < LEAST_P else f"p = {figures(p, 2) if p < NO_P else 1}"
    word = standing(pair)
    return f"{form(value, (low, high))}, {told}: {f'**{word}**' if pair['ahead'] else word}".replace("-", "−")


def standing(pair: Line) -> str:
    """What the interval says of the first one; ahead only where no more bytes bought it.

    >>> told = {"metric": "psnr", "kind": "difference", "value.low": "0.1", "value.high": "0.3"}
    >>> standing({**told, "bytes": "1.01"}), standing({**told, "bytes": "1.17"})
    ('ahead', 'better, with more bytes')
    """
    none = 1.0 if pair["kind"] == "ratio" else 0.0
    low, high, ratio = (float(pair[key]) for key in ("value.low", "value.high", "bytes"))
    if low <= none <= high:
        return "level"
    if (low > none) == (pair["metric"] in HIGHER):
        return "ahead" if is_no_larger(ratio) else "better, with more bytes"
    return "behind" if is_no_larger(1.0 / ratio) else "worse, with fewer bytes"
