"""The whole page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segquant_bench.eval.failures import Failure
from segquant_bench.eval.report.comparing.adjust import ADJUSTMENTS
from segquant_bench.eval.report.comparing.comparison import Comparison
from segquant_bench.eval.report.comparing.summary import adjustment_note
from segquant_bench.eval.report.page.charts import LineChart, heat_data, lines_data, steps_data
from segquant_bench.eval.report.page.embed import ASSETS, data_block, policy, script, style
from segquant_bench.eval.report.page.headline import main_quantity, picture_html, sentences
from segquant_bench.eval.report.page.pairs import pairs_data
from segquant_bench.eval.report.page.pictures import PictureSet, picture_sets
from segquant_bench.eval.report.page.results import failed_html, results_html
from segquant_bench.eval.report.page.rows import PageTable, page_table, rows_data
from segquant_bench.eval.report.page.searches import searches_data
from segquant_bench.eval.report.provenance import backends, provenance
from segquant_bench.eval.report.runs.sizes import SHARE
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.study import Search
from segquant_bench.eval.tables.render_html import escape


@dataclass(frozen=True)
class Page:
    """What the page tells.

    Attributes:
        folder: where the page will be; links are relative to it.
        rows: prompts whose pictures it holds; 0 for none.
        sections: (title, HTML), folded.
        adjustment: a key of `ADJUSTMENTS`.
    """

    runs: Sequence[RunResult]
    comparisons: Sequence[Comparison]
    folder: Path
    refused: Sequence[str] = ()
    failures: Sequence[Failure] = ()
    legend: str = ""
    charts: Sequence[LineChart] = ()
    sections: Sequence[tuple[str, str]] = ()
    rows: int = 0
    adjustment: str = "holm"
    searches: Sequence[Search] = ()


def render_page(page: Page) -> str:
    """EvalError if pictures are missing."""
    table = page_table(page.runs)
    sets = picture_sets(table, page.rows) if page.rows else []
    title = "Quantization of " + ", ".join(dict.fromkeys(run.model for run in page.runs))
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    parts = {
        "policy": policy(),
        "title": escape(title),
        "subtitle": escape(_subtitle(page.runs)),
        "style": style(),
        "failed_link": "<li><a href='#failed'>Failed runs</a></li>" if page.failures else "",
        "picture": picture_html(table, sets),
        "sentences": "".join(f"<p>{each}</p>" for each in _told(page, table)),
        "results": results_html(table, page.folder),
        "legend": _bold(escape(page.legend)),
        "failed": failed_html(page.failures, page.folder) if page.failures else "",
        "details": _details(page),
        "data": "\n".join(_data(page, table, sets)),
        "script": script(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _subtitle(runs: Sequence[RunResult]) -> str:
    datasets = ", ".join(dict.fromkeys(run.dataset for run in runs))
    counts = sorted({run.n_images for run in runs})
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    count = sum(len(run.seed_runs) or 1 for run in runs)
    return f"{count} runs, {n} pictures each, prompts of {datasets}, seed {seeds}"


def _told(page: Page, table: PageTable) -> list[str]:
    found = sentences(table, page.comparisons, ADJUSTMENTS[page.adjustment][0])
    if page.failures:
        count = len(page.failures)
        found.append(f"<a href='#failed'>{count} {'run' if count == 1 else 'runs'}</a> failed.")
    return found


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


def _details(page: Page) -> str:
    items = "".join(
        f"<li><code>{escape(name)}</code> {escape(backend)}</li>" for name, backend in backends(page.runs).items()
    )
    facts = "".join(f"<li>{escape(sentence)}</li>" for sentence in provenance(page.runs))
    folded = [*page.sections, ("Paired comparisons", _comparisons(page))]
    folded.append(("Backends, versions, configuration hashes", f"<ul>{items}{facts}</ul>"))
    return "\n".join(f"<details><summary>{escape(title)}</summary>\n{content}\n</details>" for title, content in folded)


def _comparisons(page: Page) -> str:
    out = []
    if page.comparisons:
        out.append(
            "<p>They stand behind the numbers of the table, and in comparisons.csv. First method minus second, or for "
            "errors first divided by second, pair by pair; 95 % paired interval. “Not distinguishable”: the interval "
            "holds zero (×1), or the adjusted p-value is not below 5 %. “Ahead”: better at comparable bytes or fewer "
            f"(at most {100 * SHARE:g} % more). {escape(adjustment_note(page.comparisons, page.adjustment))}</p>"
        )
    else:
        out.append("<p>There is nothing to compare.</p>")
    if page.refused:
        out.append("<ul>" + "".join(f"<li>Not compared: {escape(each)}</li>" for each in page.refused) + "</ul>")
    return "\n".join(out)


def _data(page: Page, table: PageTable, sets: Sequence[PictureSet]) -> list[str]:
    rows = table.by_path()
    main = main_quantity(table)
    heat = heat_data(table)
    found = [
        data_block("rows", {**rows_data(table), "main": None if main is None else main.key}),
        data_block("pairs", pairs_data(page.comparisons, rows)),
        data_block("searches", searches_data(page.searches, rows, page.folder)),
        data_block("lines", lines_data(page.charts, rows)),
        data_block("heat", heat),
        data_block("pictures", [each.to_dict() for each in sets]),
    ]
    # a block a run, read when it is shown
    found += [
        data_block(f"steps-{number}", steps_data(table.rows[number].run, heat["layers"])) for number in heat["steps"]
    ]
    for number, each in enumerate(sets):
        # base64, of which no tag can be made; one text a row, read when it is shown
        found += [
            f"<script type='text/plain' id='strip-{number}-{place}'>{json.dumps(strip.pictures)}</script>"
            for place, strip in enumerate(each.strips)
        ]
    return found
