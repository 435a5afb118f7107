"""The report of finished runs: tables, figures and one page, from what lies on disk."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from segquant_bench.eval.files import save_bytes, save_text
from segquant_bench.eval.paper.extras import extras
from segquant_bench.eval.report.comparisons import Comparison, against_unquantized, compare_runs
from segquant_bench.eval.report.figures import grid_groups, picture_grid
from segquant_bench.eval.report.labels import is_ours
from segquant_bench.eval.report.page import render_page
from segquant_bench.eval.report.plots import metric_plot
from segquant_bench.eval.report.provenance import provenance_markdown
from segquant_bench.eval.report.tables import Table, to_csv, to_html, to_latex, to_markdown
from segquant_bench.eval.results import RunResult, load_results

LEGEND = (
    "↓ lower is better, ↑ higher is better; in brackets the 95 % bootstrap interval (over pictures; over "
    "layers for the layer error, over denoiser calls for the output error); **bold**: best of its precision. "
    "fid_ref, psnr, ssim and the perceptual distances compare with the unquantized model's pictures, fid_gt "
    "with real ones. The layer error is the geometric mean over layers of |Y − Ŷ| / |Y|, the output error "
    "the same of the denoiser's output; compression is against the unquantized run in its own precision (16 bits "
    "instead of float32 halve it already); quantize and memory: seconds and peak memory of quantizing. Layer error, "
    "weights and compression are those of all quantized components together. "
    "FID depends on its extractor and on n: compare only within a table."
)


COMPARISONS_HEAD = """# Paired comparisons

Each line pairs two runs of the same model, prompts, latents and precision, picture by picture (or layer by
layer, or denoiser call by denoiser call), and gives the first run's value minus the second's, or for errors
their ratio, with a 95 % paired bootstrap interval. *Better* and *worse* mean that the interval leaves zero
(or ×1) out.
"""


log = logging.getLogger(__name__)


def write_report(
    directories: Sequence[Path], output: Path | None = None, *, grid: bool = True, rows: int = 8
) -> dict[str, Path]:
    """Render every `results.json` below `directories`.

    Args:
        directories: run or sweep folders.
        output: where the report goes; by default the first directory.
        grid: whether to draw the picture grid (it needs the pictures).
        rows: prompts in the grid.

    Returns:
        the files written: table.md, table.csv, table.tex, comparisons.md, metrics.png, grid.png (one more per
        further model, dataset, seed or choice of prompts) and report.html; and what
        `paper.extras` finds.

    Raises:
        EvalError: no results, a broken results.json, or pictures that are missing.
    """
    runs = load_results(directories)
    folder = Path(directories[0] if output is None else output)
    table = Table.of(runs)
    comparisons, refused = compare_runs(runs)
    comparisons += against_unquantized(runs)
    parts = [part for part in (table.part(True), table.part(False)) if part.columns]
    for sentence in refused:
        log.warning("%s", sentence)
    pictures = _pictures(runs, grid, rows)
    plot = metric_plot(table.runs)
    more = extras(table.runs)
    pictures = {**({} if plot is None else {"metrics.png": plot}), **more.pictures, **pictures}
    texts = {
        "table.md": "\n".join([*map(to_markdown, parts), LEGEND, "", sources_markdown(table.runs)]),
        "table.csv": to_csv(table),
        "table.tex": "\n".join(map(to_latex, parts)),
        "comparisons.md": comparisons_markdown(comparisons, refused),
        "report.html": render_page(
            table.runs, [to_html(part) for part in parts], comparisons, refused, pictures, LEGEND, more.sections
        ),
        **more.texts,
    }
    for name, content in pictures.items():
        save_bytes(folder / name, content)
    for name, text in texts.items():
        save_text(folder / name, text)
    return {name: folder / name for name in (*texts, *pictures)}


def _pictures(runs: Sequence[RunResult], grid: bool, rows: int) -> dict[str, bytes]:
    """The grids by file name; the first group's is grid.png."""
    if not grid:
        return {}
    return {name: picture_grid(members, rows) for name, members in grid_groups(runs).items()}


def comparisons_markdown(comparisons: Sequence[Comparison], refused: Sequence[str]) -> str:
    """Sentences by precision and pair, and what could not be compared."""
    lines = COMPARISONS_HEAD.splitlines() + [""]
    last: tuple[str, ...] | None = None
    for comparison in comparisons:
        if comparison.pair != last:
            lines += ["", f"## {comparison.ours} vs {comparison.theirs} at {comparison.setting}", ""]
            last = comparison.pair
        lines.append(f"- {comparison.sentence()}")
    if not any(is_ours(c.ours) and c.theirs != "unquantized" for c in comparisons):
        lines += [
            "",
            "No run of SegQuant or auto stands beside another method at the same precision: nothing to compare.",
        ]
    lines += [f"\nNot compared: {sentence}" for sentence in refused]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def sources_markdown(runs: Sequence[RunResult]) -> str:
    """One line per metric, what computed it; then versions, device, commit and configuration hashes."""
    found = {metric.name: metric.backend for run in runs for metric in run.metrics}
    lines = [f"- `{name}`: {backend}\n" for name, backend in found.items()]
    return "".join(lines) + provenance_markdown(runs)
