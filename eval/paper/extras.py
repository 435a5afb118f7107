from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from segquant_bench.eval.paper.curves import curves_csv, curves_plot, size_curves, step_curves
from segquant_bench.eval.paper.layers import CUTS_NOTE, LAYERS_NOTE, cut_sheets, layer_sheets, layers_csv
from segquant_bench.eval.paper.pareto import pareto_csv, pareto_plot, pareto_points
from segquant_bench.eval.paper.polarity import NOTE as POLARITY_NOTE
from segquant_bench.eval.paper.polarity import polarity_sheets
from segquant_bench.eval.report.drawing.canvas import to_files
from segquant_bench.eval.report.page.charts import LineChart
from segquant_bench.eval.report.provenance import provenance_markdown
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.render_html import to_html
from segquant_bench.eval.tables.render_latex import PACKAGES, to_latex
from segquant_bench.eval.tables.render_markdown import to_markdown
from segquant_bench.eval.tables.table import Table


@dataclass(frozen=True)
class Extras:
    """Further files by name, and sections (title, HTML) and charts of the page."""

    texts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    sections: list[tuple[str, str]] = field(default_factory=list)
    charts: list[LineChart] = field(default_factory=list)


def extras(runs: Sequence[RunResult], formats: Sequence[str] = ("png",)) -> Extras:
    """layers.*, cuts.*, polarity.*, timesteps.*, calibration.* and pareto.*, where not empty.

    `formats` are those of figures, see `drawing.canvas`.
    """
    found = Extras()
    sources = provenance_markdown(runs)
    if any(run.every_layer_error for run in runs):
        found.texts["layers.csv"] = layers_csv(runs)
    for name, title, tables, note in (
        ("polarity", "Signs after activations", polarity_sheets(runs), POLARITY_NOTE),
        ("cuts", "Where layers are cut", cut_sheets(runs), CUTS_NOTE),
        ("layers", "Errors by layer", layer_sheets(runs), LAYERS_NOTE),
    ):
        if tables:
            found.texts.update(_texts(name, title, tables, note, sources))
            if name != "layers":  # the page has a chart of these
                found.sections.append((title, f"<p class='pale'>{note}</p>" + "\n".join(map(to_html, tables))))
    for chart in (
        LineChart("timesteps", "Error over the sampling steps", "sampling step", step_curves(runs)),
        LineChart("calibration", "Error over the number of calibration prompts", "calibration prompts",
                  size_curves(runs), doubling=True),
    ):  # fmt: skip
        if chart.panels:
            found.charts.append(chart)
            found.texts[f"{chart.name}.csv"] = curves_csv(chart.panels, chart.axis)
            if formats:
                figure = curves_plot(chart.panels, chart.axis, doubling=chart.doubling)
                found.pictures.update(to_files(chart.name, figure, formats))
    if points := pareto_points(runs):
        found.texts["pareto.csv"] = pareto_csv(points)
        found.pictures.update(to_files("pareto", pareto_plot(points) if formats else None, formats))
    return found


def _texts(name: str, title: str, tables: Sequence[Table], note: str, sources: str) -> dict[str, str]:
    return {
        f"{name}.md": "\n".join([f"# {title}\n\n{note}\n", *map(to_markdown, tables), sources]),
        f"{name}.tex": "\n".join([PACKAGES, *map(to_latex, tables)]),
    }
