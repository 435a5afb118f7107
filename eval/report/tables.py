"""The results table as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from segquant_bench.eval.report.columns import Cell, Column, best_runs, columns
from segquant_bench.eval.report.labels import group_key, labels, prompts_name, sort_runs
from segquant_bench.eval.results import Interval, RunResult

DASH = "–"


@dataclass(frozen=True)
class Table:
    """Sorted runs, the columns they have, their labels and the best of each group (by `id` of the run)."""

    runs: list[RunResult]
    columns: list[Column]
    labels: dict[int, str]
    best: dict[str, set[int]]
    keys: list[tuple[str, Callable[[RunResult], str]]]

    @classmethod
    def of(cls, runs: Sequence[RunResult]) -> Table:
        """Lay out the runs; model, dataset, seed and prompts become columns only where they differ."""
        ordered = sort_runs(runs)
        found = columns(ordered)
        names = labels(ordered)
        every: list[tuple[str, Callable[[RunResult], str]]] = [
            ("model", lambda r: r.model),
            ("dataset", lambda r: r.dataset),
            ("seed", lambda r: str(r.seed)),
            ("prompts", prompts_name),
        ]
        keys = [(title, get) for title, get in every if len({get(r) for r in ordered}) > 1]
        keys += [
            ("precision", lambda r: r.precision or DASH),
            ("method", lambda r: names[id(r)]),
            ("n", lambda r: str(r.n_images)),
        ]
        return cls(ordered, found, names, {c.key: best_runs(c, ordered) for c in found}, keys)

    def part(self, judged: bool) -> Table:
        """Only the columns of the judgement, or only those of size and cost."""
        return replace(self, columns=[column for column in self.columns if column.judged == judged])

    def is_best(self, column: Column, run: RunResult) -> bool:
        """Whether this cell is set bold."""
        return id(run) in self.best[column.key]


def format_number(value: float, digits: int | None = None) -> str:
    """Three to four significant digits, never in exponents; ∞ for infinity."""
    if digits is None and abs(value) < 5e-6:
        return "0"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{decimals(value) if digits is None else digits}f}"


def decimals(value: float) -> int:
    """Decimals that leave a number with three or four significant digits, at most five."""
    if abs(value) < 5e-6:
        return 0
    return min(max(2 - math.floor(math.log10(abs(value))), 1 if abs(value) < 1000 else 0), 5)


def format_interval(interval: Interval, value: float) -> str:
    """``[lo, hi]`` with the decimals of its value."""
    digits = decimals(value)
    return f"[{format_number(interval[0], digits)}, {format_number(interval[1], digits)}]"


def to_markdown(table: Table) -> str:
    """GitHub Markdown: one row per run, the interval behind its value, the best of each precision in bold."""
    titles = [title for title, _ in table.keys]
    for column in table.columns:
        unit = f" ({column.unit})" if column.unit else ""
        titles.append(f"{column.title}{unit} {column.arrow}".strip())
    align = ["---"] * (len(table.keys) - 1) + ["---:"] * (len(table.columns) + 1)
    lines = [titles, align]
    for run in table.runs:
        row = [_markdown_escape(get(run)) for _, get in table.keys]
        for column in table.columns:
            cell = column.cell(run)
            row.append(_markdown_cell(cell, table.is_best(column, run)))
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _markdown_cell(cell: Cell | None, best: bool) -> str:
    if cell is None:
        return DASH
    value = format_number(cell.value)
    value = f"**{value}**" if best else value
    return value if cell.interval is None else f"{value} {format_interval(cell.interval, cell.value)}"


def _markdown_escape(text: str) -> str:
    return re.sub(r"([|*\\])", r"\\\1", text)


def to_csv(table: Table) -> str:
    """Every number at full precision, intervals and deltas in columns of their own; empty where undefined."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["model", "dataset", "seed", "precision", "method", "name", "n"]
    names = dict.fromkeys(m.name for run in table.runs for m in run.metrics)
    for column in table.columns:
        head += [column.key] + ([f"{column.key}.low", f"{column.key}.high"] if column.judged else [])
    for name in names:
        head += [f"{name}.delta", f"{name}.delta.low", f"{name}.delta.high"]
    stages = dict.fromkeys(stage for run in table.runs for stage in run.stages)
    head += [f"{stage}.{key}" for stage in stages for key in ("seconds", "peak_memory_mb")] + ["path"]
    writer.writerow(head)
    for run in table.runs:
        row: list[object] = [run.model, run.dataset, run.seed, run.precision, run.quantizer, run.name]
        row.append(run.n_images)
        for column in table.columns:
            cell = column.cell(run)
            edges = _edges(None if cell is None else cell.interval) if column.judged else []
            row += ["" if cell is None else repr(cell.value), *edges]
        for name in names:
            metric = run.metric(name)
            row.append("" if metric is None or metric.delta is None else repr(metric.delta))
            row += _edges(None if metric is None else metric.delta_interval)
        row += [run.stages.get(s, {}).get(key, "") for s in stages for key in ("seconds", "peak_memory_mb")]
        writer.writerow([*row, str(run.path)])
    return out.getvalue()


def _edges(interval: Interval | None) -> list[str]:
    return ["", ""] if interval is None else [repr(interval[0]), repr(interval[1])]


def to_latex(table: Table) -> str:
    r"""A booktabs tabular (needs ``\usepackage{booktabs}``), a rule between precisions. One for
    the whole table would be too wide for a page: pass its parts."""
    arrows = {"↑": r" $\uparrow$", "↓": r" $\downarrow$", "": ""}
    head = [latex_escape(title) for title, _ in table.keys]
    for column in table.columns:
        unit = {"": "", "×": r" ($\times$)"}.get(column.unit, f" ({latex_escape(column.unit)})")
        head.append(latex_escape(column.title) + unit + arrows[column.arrow])
    spec = "l" * (len(table.keys) - 1) + "r" * (len(table.columns) + 1)
    lines = [
        r"% needs \usepackage{booktabs}; intervals are 95 % bootstrap intervals",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
    ]
    last = None
    for run in table.runs:
        group = group_key(run)
        if last is not None and group != last:
            lines.append(r"\midrule")
        last = group
        row = ["--" if get(run) == DASH else latex_escape(get(run)) for _, get in table.keys]
        row += [_latex_cell(c.cell(run), table.is_best(c, run)) for c in table.columns]
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(cell: Cell | None, best: bool) -> str:
    if cell is None:
        return "--"
    value = format_number(cell.value).replace("∞", r"$\infty$").replace("−", "$-$")
    value = rf"\textbf{{{value}}}" if best else value
    if cell.interval is None:
        return value
    return rf"{value} {{\scriptsize {format_interval(cell.interval, cell.value)}}}"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


def latex_escape(text: str) -> str:
    """Text safe outside math mode."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_html(table: Table) -> str:
    """A `<table class="results">`; intervals stand below their values."""
    head = [f"<th class='key'>{html.escape(title)}</th>" for title, _ in table.keys]
    for column in table.columns:
        name, _, network = column.title.partition(" [")
        below = " ".join(part for part in (network.rstrip("]"), column.unit) if part)
        small = f"<br><small>{html.escape(below)}</small>" if below else ""
        head.append(f"<th>{html.escape(name)}\N{NO-BREAK SPACE}{column.arrow}{small}</th>")
    rows = []
    last = None
    for run in table.runs:
        group = group_key(run)
        start = " class='group'" if last is not None and group != last else ""
        last = group
        cells = [f"<td class='key'>{html.escape(get(run))}</td>" for _, get in table.keys]
        cells += [_html_cell(c.cell(run), table.is_best(c, run)) for c in table.columns]
        rows.append(f"<tr{start}>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return f"<table class='results'>\n<thead><tr>{''.join(head)}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def _html_cell(cell: Cell | None, best: bool) -> str:
    if cell is None:
        return f"<td>{DASH}</td>"
    value = format_number(cell.value)
    value = f"<b>{value}</b>" if best else value
    if cell.interval is None:
        return f"<td>{value}</td>"
    return f"<td>{value}<br><small>{format_interval(cell.interval, cell.value)}</small></td>"
