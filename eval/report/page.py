"""report.html: one self-contained page."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from segquant_bench.eval.report.comparing.comparison import Comparison
from segquant_bench.eval.report.comparing.summary import adjustment_note, is_headline
from segquant_bench.eval.report.drawing.grid import grid_groups
from segquant_bench.eval.report.provenance import backends, provenance
from segquant_bench.eval.report.runs.labels import places
from segquant_bench.eval.report.runs.sizes import SHARE
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.render_html import escape, to_html
from segquant_bench.eval.tables.table import Cell, Row, Table, heads

STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c1917; margin: 2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p, li { max-width: 60rem; } .pale { color: #57534e; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin-bottom: 1.2rem; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; vertical-align: top; white-space: nowrap; }
td.key:last-child { white-space: normal; }
th { border-bottom: 2px solid #44403c; vertical-align: top; font-weight: 600; }
td small, th small { color: #57534e; font-weight: 400; font-size: 11.5px; }
td b { color: #9a3412; }
.key { text-align: left; } tr.group td { border-top: 1px solid #a8a29e; }
tbody tr:hover { background: #f5f5f4; } .results th:not(.key) { white-space: normal; }
.better { color: #15803d; font-weight: 600; } .worse { color: #b91c1c; font-weight: 600; }
.tie { color: #57534e; }
code { background: #f5f5f4; padding: 0 .25rem; }
"""


def render_page(
    runs: Sequence[RunResult],
    tables: Sequence[Table],
    comparisons: Sequence[Comparison],
    refused: Sequence[str],
    pictures: Mapping[str, bytes],
    legend: str,
    sections: Sequence[tuple[str, str]] = (),
    adjustment: str = "holm",
) -> str:
    """PNGs by file name; `sections` are (title, HTML), folded; `adjustment` is a key of `ADJUSTMENTS`."""
    parts = [
        "<!doctype html>",
        "<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(_title(runs))}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(_title(runs))}</h1>",
        f"<p class='pale'>{escape(_subtitle(runs))}</p>",
        _headline(comparisons),
        "<h2>Results</h2>",
        *(
            to_html(table) if table.title else f"<div class='wide'>{to_html(table, 'results')}</div>"
            for table in tables
        ),
        f"<p class='pale'>{_bold(escape(legend))}</p>",
    ]
    titles = _titles(runs)
    parts += [_picture(titles.get(name, name), content) for name, content in pictures.items()]
    parts += [
        f"<details><summary><b>{escape(title)}</b></summary>\n{content}\n</details>" for title, content in sections
    ]
    parts += [_comparisons(comparisons, refused, adjustment), _methods(runs), "</body></html>"]
    return "\n".join(parts) + "\n"


def _title(runs: Sequence[RunResult]) -> str:
    return "Quantization of " + ", ".join(dict.fromkeys(run.model for run in runs))


def _subtitle(runs: Sequence[RunResult]) -> str:
    datasets = ", ".join(dict.fromkeys(run.dataset for run in runs))
    counts = sorted({run.n_images for run in runs})
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    count = sum(len(run.seed_runs) or 1 for run in runs)
    return f"{count} runs, {n} pictures each, prompts of {datasets}, seed {seeds}"


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


def _headline(comparisons: Sequence[Comparison]) -> str:
    pairs: dict[tuple[str, ...], list[Comparison]] = {}
    for c in comparisons:
        if is_headline(c):
            pairs.setdefault(c.pair, []).append(c)
    lines = []
    for found in pairs.values():
        first = found[0]
        pair = f"<b>{escape(first.ours)}</b> vs {escape(first.theirs)} at {escape(first.setting)}"
        lines.append(f"<li>{pair}: {'; '.join(map(_told, found))}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _told(c: Comparison) -> str:
    return f"{escape(c.metric)} {escape(c.amount)} <span class='{_colour(c.verdict)}'>{escape(c.verdict)}</span>"


def _colour(verdict: str) -> str:
    return verdict if verdict in ("better", "worse") else "tie"


def _titles(runs: Sequence[RunResult]) -> dict[str, str]:
    found = {
        "metrics.png": "Main numbers with intervals",
        "bytes.png": "Error against bytes",
        "timesteps.png": "Error over the sampling steps",
        "calibration.png": "Error over the number of calibration prompts",
    }
    where = places(runs)
    for name, members in grid_groups(runs).items():
        found[name] = ": ".join(part for part in ("Pictures", where.get(id(members[0]), "")) if part)
    return found


def _picture(title: str, content: bytes) -> str:
    data = base64.b64encode(content).decode("ascii")
    image = f"<img alt='{escape(title)}' src='data:image/png;base64,{data}'>"
    return f"<h2>{escape(title)}</h2>\n<div class='wide'>{image}</div>"


def _pairs_table(comparisons: Sequence[Comparison]) -> Table:
    columns = heads(("precision", "methods", "metric"), ("difference or ratio",))
    columns = (*columns, *heads(("verdict", "ahead"), ("bytes", "n")))
    return Table(columns, tuple(_pair_rows(list(members)) for _, members in groupby(comparisons, lambda c: c.pair)))


def _pair_rows(comparisons: Sequence[Comparison]) -> tuple[Row, ...]:
    found = []
    for number, c in enumerate(comparisons):
        names = ("", "") if number else (c.setting, f"{c.ours} vs {c.theirs}")
        verdict = Cell(c.verdict, verdict=_colour(c.verdict))
        size = "" if c.size_ratio is None else f"×{c.size_ratio:.2f}"
        ahead = {"a": c.ours, "b": c.theirs, "": ""}[c.ahead]
        found.append((*map(Cell, (*names, c.metric, c.amount)), verdict, *map(Cell, (ahead, size, c.count))))
    return tuple(found)


def _comparisons(comparisons: Sequence[Comparison], refused: Sequence[str], adjustment: str) -> str:
    out = ["<h2>Paired comparisons</h2>"]
    if comparisons:
        out.append(
            "<p class='pale'>First method minus second, or for errors first divided by second, pair by pair; "
            "95 % paired interval. “Not distinguishable”: the interval holds zero (×1), or the adjusted "
            "p-value is not below 5 %. “Ahead”: better at comparable bytes or fewer (at most "
            f"{100 * SHARE:g} % more). {escape(adjustment_note(comparisons, adjustment))}</p>"
        )
        out.append(f"<div class='wide'>{to_html(_pairs_table(comparisons))}</div>")
    else:
        out.append("<p>There is nothing to compare.</p>")
    out += [f"<p>Not compared: {escape(sentence)}</p>" for sentence in refused]
    return "\n".join(out)


def _methods(runs: Sequence[RunResult]) -> str:
    items = "".join(
        f"<li><code>{escape(name)}</code> {escape(backend)}</li>" for name, backend in backends(runs).items()
    )
    facts = "".join(f"<li>{escape(sentence)}</li>" for sentence in provenance(runs))
    return f"<h2>How it was measured</h2><ul>{items}{facts}</ul>"
