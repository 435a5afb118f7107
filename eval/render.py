from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.failures import Failure, load_failures
from segquant_bench.eval.files import save_bytes, save_text
from segquant_bench.eval.paper.extras import extras
from segquant_bench.eval.report.comparing.choose import Choice
from segquant_bench.eval.report.comparing.comparisons import adjusted, against_unquantized, compare_chosen, compare_runs
from segquant_bench.eval.report.comparing.summary import comparisons_markdown, comparisons_table
from segquant_bench.eval.report.drawing.bytes_plot import bytes_plot
from segquant_bench.eval.report.drawing.canvas import to_files
from segquant_bench.eval.report.drawing.fonts import boxes_note
from segquant_bench.eval.report.drawing.formats_plot import formats_plot
from segquant_bench.eval.report.drawing.grid import check_pictures, grid_groups, picture_grid, shown_prompts
from segquant_bench.eval.report.drawing.metric_plot import metric_plot
from segquant_bench.eval.report.main_table.export import export_table
from segquant_bench.eval.report.main_table.failed import failed_table
from segquant_bench.eval.report.main_table.paper_table import paper_table
from segquant_bench.eval.report.main_table.results_table import has_results, results_table
from segquant_bench.eval.report.page.render import Page, render_page
from segquant_bench.eval.report.provenance import sources_markdown
from segquant_bench.eval.report.runs.groups import sort_runs
from segquant_bench.eval.report.runs.labels import labels, places
from segquant_bench.eval.report.runs.seeds import merge_seeds
from segquant_bench.eval.report.runs.sizes import SHARE
from segquant_bench.eval.results import RunResult, load_results
from segquant_bench.eval.store import STORE, Store
from segquant_bench.eval.study import Search, front_table, load_searches, trials_table
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.render_html import to_html
from segquant_bench.eval.tables.render_latex import to_latex, to_latex_float
from segquant_bench.eval.tables.render_markdown import to_markdown
from segquant_bench.texts import plain

LEGEND = (
    "↓ lower is better, ↑ higher is better; in brackets the 95 % interval (over pictures; over "
    "layers for the layer error, over held-out prompts for the output error). Within a precision rows are in the "
    f"order of bytes; rows that share a letter under size have comparable bytes (at most {100 * SHARE:g} % apart). "
    "**Bold**: the interval lies apart, on the better side, from that of every row of its precision with comparable "
    "bytes or fewer, and one of these has comparable bytes. "
    "fid_ref, psnr, ssim and the perceptual distances compare with the unquantized model's pictures, fid_gt "
    "with real ones. The layer error is the geometric mean over layers of |Y − Ŷ| / |Y|, the output error "
    "the same of the denoiser's output; compression is against the unquantized run in its own precision (16 bits "
    "instead of float32 halve it already); quantize and memory: seconds and peak memory of quantizing. Layer error, "
    "weights and compression are those of all quantized components together. "
    "FID depends on its extractor and on n: compare only within a table."
)

SPEED_LEGEND = (
    "step: median seconds of one sampling step's denoiser calls by the run's engine; speed: against float32 in plain "
    "torch, measured in turn in the same process (minima); forward: peak memory of such a step above what is held; "
    "held: weights in memory; file: what the engine's model is loaded from."
)

SEEDS_LEGEND = (
    "Rows of several calibration seeds: mean ± standard deviation over seeds; their interval adds up those over "
    "pictures (the mean of the seeds' own) and over seeds (Student's), half-widths in quadrature. "
    "The grid has pictures of the first seed; table.csv has a line for every seed."
)

MOST_RUNS = 200
"""For figures and picture grids: larger ones are tens of thousands of pixels."""

log = logging.getLogger(__name__)


def write_report(
    directories: Sequence[Path],
    output: Path | None = None,
    *,
    grid: bool = True,
    rows: int = 8,
    skipped: Sequence[Failure] = (),
    choice: Choice | None = None,
    adjustment: str = "holm",
    figures: Sequence[str] = ("png",),
    latex: LatexTable | None = None,
    page: bool = True,
) -> dict[str, Path]:
    """Render every `results.json` and `failure.json` below `directories` into `output` (the first directory).

    Args:
        grid: whether to draw the pictures.
        rows: prompts in the grid.
        skipped: broken files (see `find_unreadable`), which stand among the failed runs.
        choice: what to compare instead of our methods with all others.
        adjustment: of p-values for the number of comparisons, a key of `ADJUSTMENTS`.
        figures: formats of figures (`drawing.canvas.FORMATS`); the page draws its own.
        latex: how table.tex is made; by default bare tabulars of everything.
        page: whether there is a report.html.

    Raises:
        EvalError: no results, a broken file that is not skipped, an unknown method in `choice`, missing pictures, or
            a folder that takes no files.
    """
    folder = report_folder(directories, output)
    check_folder(folder)
    runs, failures, update = read_runs(directories, folder, skipped)
    runs, searches = merge_seeds(runs), load_searches(directories)
    if grid:
        check_pictures(runs, rows)
    texts, pictures = _contents(
        runs, failures, searches, folder, Options(grid, rows, choice or Choice(), adjustment, figures, latex, page)
    )
    update()
    for name, content in pictures.items():
        save_bytes(folder / name, content)
    for name, text in texts.items():
        save_text(folder / name, text)
    return {name: folder / name for name in (*texts, *pictures)}


def report_folder(directories: Sequence[Path], output: Path | None) -> Path:
    """`output`, else the first directory."""
    first = Path(directories[0])
    return Path(output) if output is not None else first.parent if first.is_file() else first


def check_folder(folder: Path) -> None:
    """EvalError if a report could not be written there, which is known before any work."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not place.is_dir():
        raise EvalError(f"{place} is no folder, and the report would be written to {folder}; choose another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise EvalError(f"{place} takes no files, and the report would be written to {folder}; choose another --output")


def read_runs(
    directories: Sequence[Path], folder: Path, skipped: Sequence[Failure] = ()
) -> tuple[list[RunResult], list[Failure], Callable[[], None]]:
    """Runs and failures, by the store in `folder`; and what makes that, or brings it up to date."""
    failures = [*load_failures(directories, {each.path for each in skipped}), *skipped]
    store = Store(folder / STORE)
    updates: list[Callable[[], None]] = []

    def load(paths: Sequence[Path]) -> list[RunResult]:
        found, update = store.read(paths, failures)
        updates.append(update)
        return found

    runs = load_results(directories, skipped, load)
    return runs, failures, updates[0]


@dataclass(frozen=True)
class LatexTable:
    """One float, or `longtable`, of some columns; see `paper_table` and `to_latex_float`."""

    columns: tuple[str, ...] = ()
    caption: str = ""
    label: str = ""
    longtable: bool = False

    def text(self, runs: Sequence[RunResult]) -> str:
        return to_latex_float(paper_table(runs, self.columns), self.caption, self.label, longtable=self.longtable)


@dataclass(frozen=True)
class Options:
    """See `write_report`."""

    grid: bool
    rows: int
    choice: Choice
    adjustment: str
    figures: Sequence[str]
    latex: LatexTable | None
    page: bool


def _contents(
    runs: Sequence[RunResult],
    failures: Sequence[Failure],
    searches: Sequence[Search],
    folder: Path,
    options: Options,
) -> tuple[dict[str, str], dict[str, bytes]]:
    ordered = sort_runs(runs)
    latex = options.latex.text(runs) if options.latex else ""  # refuses columns that there are not
    comparisons, refused = compare_chosen(runs, options.choice) if options.choice else compare_runs(runs)
    comparisons = adjusted([*comparisons, *against_unquantized(runs)], options.adjustment)
    for sentence in refused:
        log.warning("%s", plain(sentence))
    formats = _formats(runs, options)
    more = extras(ordered, formats)
    pictures = {**_figures(ordered, formats, options), **more.pictures, **_pictures(runs, options)}
    tables = [table for judged in (True, False) if has_results(table := results_table(runs, judged))]
    failed = [*map(front_table, searches), *([failed_table(failures)] if failures else [])]
    speed = SPEED_LEGEND if any(run.speed for run in runs) else ""
    seeds = SEEDS_LEGEND if any(run.seed_runs for run in runs) else ""
    boxes = _boxes(runs, pictures, options.rows if options.grid else 0)
    legend = " ".join(part for part in (LEGEND, seeds, speed, boxes) if part)
    chosen = bool(options.choice)
    fronts = [(table.title, to_html(table)) for table in map(front_table, searches)]
    page = Page(ordered, comparisons, folder, refused, failures, legend, more.charts, [*more.sections, *fronts],
                options.rows if options.grid else 0, options.adjustment, searches)  # fmt: skip
    texts = {
        "table.md": "\n".join([*map(to_markdown, [*tables, *failed]), legend, "", sources_markdown(ordered)]),
        "table.csv": to_csv(export_table(runs, failures)),
        "table.tex": latex or "\n".join(map(to_latex, [*tables, *failed])),
        "comparisons.md": comparisons_markdown(comparisons, refused, adjustment=options.adjustment, chosen=chosen),
        "comparisons.csv": to_csv(comparisons_table(comparisons)),
        **({"report.html": render_page(page)} if options.page else {}),
        **({"study.csv": to_csv(trials_table(searches[0]))} if len(searches) == 1 else {}),
        **more.texts,
    }
    return texts, pictures


def _boxes(runs: Sequence[RunResult], pictures: Mapping[str, bytes], rows: int) -> str:
    """What pictures cannot show of the texts that stand in them."""
    if not pictures:
        return ""
    texts = [*labels(runs).values(), *places(runs).values()]
    for run in runs:
        texts += [run.precision, *(run.prompts[index] for index in shown_prompts(run.prompts, rows))]
    return boxes_note(map(plain, texts))


def _formats(runs: Sequence[RunResult], options: Options) -> Sequence[str]:
    """Of figures; none, which is said, for more runs than a figure has room for."""
    if len(runs) <= MOST_RUNS or not (options.figures or options.grid):
        return options.figures
    log.warning("%d runs are more than figures and picture grids have room for (%d): report.html has all of them, and "
                "segquant-report on some of the folders draws these", len(runs), MOST_RUNS)  # fmt: skip
    return ()


def _figures(runs: Sequence[RunResult], formats: Sequence[str], options: Options) -> dict[str, bytes]:
    if not options.figures:
        return {}
    every = to_files("formats", formats_plot(runs), options.figures)  # has room for any number of runs
    if not formats:
        return every
    return {**to_files("metrics", metric_plot(runs), formats), **to_files("bytes", bytes_plot(runs), formats), **every}


def _pictures(runs: Sequence[RunResult], options: Options) -> dict[str, bytes]:
    if not options.grid or len(runs) > MOST_RUNS:
        return {}
    return {name: picture_grid(members, options.rows) for name, members in grid_groups(runs).items()}
