"""The top of the page: a picture and three sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from segquant_bench.eval.metrics.registry import known_metric, place
from segquant_bench.eval.report.comparing.comparison import TIE, Comparison
from segquant_bench.eval.report.comparing.summary import LAYER_ERROR, NOTHING, is_headline
from segquant_bench.eval.report.main_table.columns import Quantity
from segquant_bench.eval.report.page.pairs import COLUMNS
from segquant_bench.eval.report.page.pictures import PictureSet, Strip
from segquant_bench.eval.report.page.rows import PageRow, PageTable
from segquant_bench.eval.report.runs.sizes import SHARE
from segquant_bench.eval.tables.numbers import format_interval
from segquant_bench.eval.tables.render_html import escape

GROUPS = 4
"""Precisions that a sentence tells."""
METHODS = 4
"""Methods in the picture, beside the unquantized model."""
PROMPTS = 2
PIXELS = 128
"""Up to this side, enlarged pictures show their pixels."""


def sentences(table: PageTable, comparisons: Sequence[Comparison], adjustment: str) -> list[str]:
    """What was judged, who is first, and how many comparisons say so; HTML. `adjustment` as people call it."""
    main = main_quantity(table)
    found = [_judged(table)]
    if main is not None:
        found += [_first(table, main), _compared(comparisons, main, adjustment)]
    return found


def main_quantity(table: PageTable) -> Quantity | None:
    """The first headline metric, else the layer error; None without either."""
    known = {quantity.key: quantity for quantity in table.quantities}
    heads = [key for key in known if (metric := known_metric(key)) is not None and metric.headline]
    keys = [*sorted(heads, key=place), COLUMNS[LAYER_ERROR]]
    return next((known[key] for key in keys if key in known), None)


def _judged(table: PageTable) -> str:
    quantized = [row for row in table.rows if not row.run.is_float]
    precisions = dict.fromkeys(row.run.precision for row in quantized)
    models = ", ".join(dict.fromkeys(row.run.model for row in table.rows))
    counts = sorted({row.run.n_images for row in table.rows})
    pictures = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    sets = ", ".join(dict.fromkeys(row.run.dataset for row in table.rows))
    runs = _count(len(quantized), "quantized run")
    at = f" at {_count(len(precisions), 'precision')}" if quantized else ""
    return f"{runs} of {escape(models)}{at}, each judged by {pictures} pictures of prompts of {escape(sets)}."


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _first(table: PageTable, main: Quantity) -> str:
    """Who has the best value per group; bold as in the table."""
    index = table.quantities.index(main)
    sign = 1.0 if main.head.direction == "lower" else -1.0
    told = []
    for group, members in groupby(table.rows, lambda row: row.group):
        values = [(sign * cell.value, row) for row in members if (cell := row.cells[index]).value is not None]
        ranked = [pair for pair in values if not pair[1].run.is_float]
        if ranked:
            told.append(f"{_value(min(ranked, key=lambda pair: pair[0])[1], index)} at {escape(group)}")
    best = "Lowest" if main.head.direction == "lower" else "Highest"
    more = f" and {len(told) - GROUPS} more in the table" if len(told) > GROUPS else ""
    return f"{best} {escape(_name(main))}: {'; '.join(told[:GROUPS])}{more}."


def _name(main: Quantity) -> str:
    return main.head.name + (f" ({main.head.unit})" if main.head.unit else "")


def _value(row: PageRow, index: int) -> str:
    cell = row.cells[index]
    interval = "" if cell.interval is None else f" {format_interval(cell.interval, cell.value or 0.0)}"
    name = f"<b>{escape(row.label)}</b>" if cell.bold else escape(row.label)
    return f"{name} {escape(cell.text + interval)}"


def _compared(comparisons: Sequence[Comparison], main: Quantity, adjustment: str) -> str:
    told = [c for c in comparisons if c.headline and is_headline(c) and COLUMNS.get(c.metric, c.metric) == main.key]
    if not told:
        return (
            NOTHING if not any(c.headline for c in comparisons) else f"No pair was compared by {escape(_name(main))}."
        )
    ahead = sum(c.ahead == "a" for c in told)
    larger = sum(c.verdict == "better" for c in told) - ahead
    level = sum(c.verdict == TIE for c in told)
    worse = len(told) - ahead - larger - level
    names = list(dict.fromkeys(c.ours for c in told))
    number = len(comparisons)
    who = escape(", ".join(names[:METHODS])) + (f" and {len(names) - METHODS} more" if len(names) > METHODS else "")
    return (
        f"Of {_count(len(told), 'paired comparison')} of {who} with other methods in {escape(_name(main))}: "
        f"{ahead} ahead (better with at most {100 * SHARE:g} % more bytes), {larger} better with more bytes, "
        f"{level} not distinguishable and {worse} worse, by {escape(adjustment)} over all {number} comparisons."
    )


def picture_html(table: PageTable, sets: Sequence[PictureSet]) -> str:
    """The first prompts of the last group: there methods differ most. Empty without pictures."""
    if not sets:
        return ""
    first = sets[0]
    rows = [strip for strip in first.strips if strip.row is not None and not table.rows[strip.row].run.is_float]
    groups = [list(members) for _, members in groupby(rows, lambda strip: table.rows[strip.row or 0].group)]
    plain = [strip for strip in first.strips if strip.row is None or table.rows[strip.row].run.is_float][:1]
    chosen = [*plain, *(_spread(groups[-1]) if groups else [])]
    names = ["unquantized" if strip in plain else table.rows[strip.row or 0].label for strip in chosen]
    figures = "".join(_column(strip, name, first) for strip, name in zip(chosen, names, strict=True))
    at = f" at {escape(table.rows[groups[-1][0].row or 0].group)}" if groups else ""
    caption = f"The unquantized model and methods{at}, same prompts and latents."
    strips = f"<div class='wide'><div class='strips'>{figures}</div></div>"
    return f"<figure class='hero'>{strips}<figcaption>{caption}</figcaption></figure>"


def _spread(strips: Sequence[Strip]) -> list[Strip]:
    """At most `METHODS`, evenly, the first and the last among them."""
    if len(strips) <= METHODS:
        return list(strips)
    return [strips[round(place * (len(strips) - 1) / (METHODS - 1))] for place in range(METHODS)]


def _column(strip: Strip, name: str, pictures: PictureSet) -> str:
    css = " class='pixels'" if pictures.side <= PIXELS else ""
    images = "".join(
        f"<img alt='{escape(f'{prompt}, {name}')}'{css} src='data:image/png;base64,{picture}'>"
        for prompt, picture in zip(pictures.prompts[:PROMPTS], strip.pictures[:PROMPTS], strict=True)
    )
    return f"<div><p>{escape(name)}</p>{images}</div>"
