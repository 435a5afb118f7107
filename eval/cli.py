"""`segquant-report`: renders the report from results on disk."""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.failures import Failure
from segquant_bench.eval.render import LatexTable, read_runs, report_folder, write_report
from segquant_bench.eval.report.comparing.adjust import ADJUSTMENTS
from segquant_bench.eval.report.comparing.choose import Choice
from segquant_bench.eval.report.drawing.canvas import FORMATS
from segquant_bench.eval.results import beside_broken
from segquant_bench.eval.store import STORE, Store
from segquant_bench.texts import plain


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 with one sentence on stderr for bad input, or 1 if files were skipped."""
    parser = argparse.ArgumentParser(
        prog="segquant-report", description="Render tables, grid and comparisons from results.json files."
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="run or sweep folder, or a results.json"
    )
    parser.add_argument("--output", type=Path, help="folder for the report (default: the first DIR)")
    parser.add_argument("--rows", type=int, default=8, help="prompts in the grid (default: 8)")
    parser.add_argument("--no-grid", action="store_true", help="leave the picture grid out")
    parser.add_argument(
        "--tables", action="store_true", help="tables and comparisons alone: no figures, no pictures, no report.html"
    )
    parser.add_argument(
        "--strict", action="store_true", help="end at the first broken file and write nothing (exit code 2); "
        "otherwise they stand among the failed runs (exit code 1)",
    )  # fmt: skip
    parser.add_argument("--skip-unreadable", action="store_true", help=argparse.SUPPRESS)  # what is done anyway
    parser.add_argument(
        "--baseline", metavar="NAME", help="compare every method with this one (as tables call it, or 'NAME at w4a8')"
    )
    parser.add_argument(
        "--pairs", action="append", default=[], metavar="A:B", help="compare these two; may be given several times"
    )
    parser.add_argument(
        "--adjust", choices=sorted(ADJUSTMENTS), default="holm",
        help="how p-values are adjusted for the number of comparisons: Holm's method (the default), or the false "
        "discovery rate",
    )  # fmt: skip
    _add_forms(parser)
    parser.add_argument(
        "--query", metavar="SQL", help=f"print what a query of the results ({STORE}) gives as CSV, and render nothing"
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.rows < 1:
            raise EvalError(f"--rows must be at least 1, {options.rows} was asked for")
        work = partial(_render if options.query is None else _query, options)
        written, skipped = (work([]), []) if options.strict else beside_broken(options.directories, work)
    except (EvalError, OSError) as error:
        sys.stderr.write(f"segquant-report: {plain(str(error))}\n")
        return 2
    sys.stdout.writelines(f"{path}\n" for path in written)
    sys.stderr.writelines(f"segquant-report: skipped: {plain(each.message)}\n" for each in skipped)
    return 1 if skipped else 0


def _render(options: argparse.Namespace, skipped: Sequence[Failure]) -> list[Path]:
    written = write_report(
        options.directories, options.output, grid=not (options.no_grid or options.tables), rows=options.rows,
        skipped=skipped, choice=Choice(options.baseline, tuple(options.pairs)), adjustment=options.adjust,
        figures=() if options.tables else _figures(options.figures), latex=_latex(options), page=not options.tables,
    )  # fmt: skip
    return list(written.values())


def _add_forms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--figures", default="png", metavar="FORMATS", help="of figures: png, svg, pdf, several with commas, or none"
    )
    paper = parser.add_argument_group("table.tex as a float that fits a column, instead of bare tabulars")
    paper.add_argument("--columns", metavar="NAMES", help="its columns with commas, such as psnr,fid_ref,weights")
    paper.add_argument("--caption", metavar="TEXT", help="its caption")
    paper.add_argument("--label", metavar="NAME", help="its label")
    paper.add_argument("--longtable", action="store_true", help="over several pages, in documents of one column")


def _figures(given: str) -> tuple[str, ...]:
    formats = tuple(name.strip() for name in given.split(",")) if given != "none" else ()
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise EvalError(f"--figures takes {', '.join(FORMATS)} or none, {unknown[0]!r} was asked for")
    return tuple(dict.fromkeys(formats))


def _latex(options: argparse.Namespace) -> LatexTable | None:
    names = tuple(name.strip() for name in options.columns.split(",")) if options.columns else ()
    table = LatexTable(names, options.caption or "", options.label or "", options.longtable)
    return None if table == LatexTable() else table


def _query(options: argparse.Namespace, skipped: Sequence[Failure]) -> list[Path]:
    folder = report_folder(options.directories, options.output)
    *_, update = read_runs(options.directories, folder, skipped)
    update()
    heads, rows = Store(folder / STORE).query(options.query)
    csv.writer(sys.stdout, lineterminator="\n").writerows([heads, *rows])
    return []


if __name__ == "__main__":
    sys.exit(main())
