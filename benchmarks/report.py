"""What a report on many runs costs, and how soon its page can be used.

    python -m benchmarks.report [--runs 102 1000] [--seeds 1] [--tables] [--profile] [--keep FOLDER]

Runs are synthetic (`benchmarks.synthetic_runs`). The page is opened in headless Chromium where there is one: until the
load event and the script are through and the table is painted, the median of five.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.synthetic_runs import write_runs
from segquant_bench.eval import render
from segquant_bench.eval.results import load_results
from segquant_bench.eval.store import STORE, Store
from tests.eval.report.page.browser import Browser, find_browser

BEST = "SELECT model, precision, quantizer, min(output_error) FROM runs GROUP BY model, precision"
PARTS = {
    "read": ("read_runs", "load_searches"),
    "sort and merge seeds": ("merge_seeds", "sort_runs"),
    "comparisons": ("compare_runs", "against_unquantized", "adjusted", "comparisons_table", "comparisons_markdown"),
    "figures": ("_figures", "_pictures"),
    "layers, cuts, curves": ("extras",),
    "tables": ("results_table", "export_table", "to_csv", "to_markdown", "to_latex", "sources_markdown"),
    "page": ("render_page",),
    "write files": ("save_text", "save_bytes"),
}
"""Functions of `render` by what they do."""
OPENED = 5
TWO_FRAMES = "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
TIMED = f"(async () => {{ const began = performance.now(); %s; {TWO_FRAMES}; return performance.now() - began; }})()"
ACTIONS = {
    "sort": "document.querySelector('#results-table thead th:nth-last-child(4) button').click()",
    "sort, one group": "document.getElementById('grouped').click()",
    "search": "(() => { const box = document.getElementById('search'); box.value = 'gptq psnr>30';"
    " box.dispatchEvent(new Event('input')); })()",
    "search undone": "(() => { const box = document.getElementById('search'); box.value = '';"
    " box.dispatchEvent(new Event('input')); })()",
    "open a pair list": "[...document.querySelectorAll('#results-table tr.ours')].pop().cells[%d].click()",
    "charts": "document.getElementById('dialog').close(); document.getElementById('pareto').scrollIntoView()",
    "errors by layer": "document.getElementById('heat').scrollIntoView()",
    "pictures": "document.getElementById('pictures').scrollIntoView()",
    "all rows": "document.querySelector('#more button').click(); scrollTo(0, 0)",
    "sort of all rows": "document.querySelector('#results-table thead th:nth-last-child(5) button').click()",
}
PSNR = "[...document.querySelectorAll('#results-table thead th')].findIndex((e) => e.textContent.includes('psnr'))"


@contextmanager
def told(what: str) -> Iterator[None]:
    """Seconds, and those of the processor: a busy machine slows the former more."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    print(f"| {what} | {time.perf_counter() - wall:.2f} | {time.process_time() - processor:.2f} |", flush=True)


@contextmanager
def parts_told() -> Iterator[None]:
    """Print the seconds of the parts of the reports that are written meanwhile."""
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    inside: list[str] = []

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return function(*args, **kwargs)
            inside.append(part)
            wall, processor = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()
                spent[part][0] += time.perf_counter() - wall
                spent[part][1] += time.process_time() - processor

        return call

    patches = {name: timed(part, getattr(render, name)) for part, names in PARTS.items() for name in names}
    with mock.patch.multiple(render, **patches):
        yield
    for part in PARTS:
        print(f"| &nbsp; {part} | {spent[part][0]:.2f} | {spent[part][1]:.2f} |", flush=True)


def measure_reading(sweep: Path) -> None:
    with told("read JSON files"):
        load_results([sweep])
    store = Store(sweep / STORE)
    for what in ("into the store", "from the store"):
        with told(what):
            load_results([sweep], load=store.load)
    with told("a query"):
        store.query(BEST)


def measure_report(sweep: Path, report: Path, *, tables: bool, profile: bool) -> None:
    options: dict[str, Any] = {"grid": not tables, "figures": () if tables else ("png",), "page": not tables}
    with told("report"), parts_told():
        render.write_report([sweep], report, **options)
    if profile:
        profiled = cProfile.Profile()
        profiled.runcall(render.write_report, [sweep], report, **options)
        pstats.Stats(profiled).sort_stats("cumulative").print_stats(70)
    sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(report.iterdir()) if path.is_file()}
    print("MB: " + ", ".join(f"{name} {size:.2f}" for name, size in sizes.items() if size >= 0.05), flush=True)


def measure_page(browser: Browser, page: Path) -> None:
    """Seconds until it can be used, and of what a reader does."""
    opened, painted, computed = [], [], []
    for _ in range(OPENED):
        before = browser.cpu_seconds()
        opened.append(browser.open(page))
        painted.append(browser.run("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN") / 1e3)
        assert browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd") > 0
        computed.append(sum(browser.cpu_seconds().values()) - sum(before.values()))
    print(f"| page usable | {statistics.median(opened):.2f} | {statistics.median(computed):.2f} |")
    print(f"| &nbsp; first paint | {statistics.median(painted):.2f} | |")
    column = browser.run(PSNR)
    for name, action in ACTIONS.items():
        asked = TIMED % (action % column if "%d" in action else action)
        print(f"| {name} | {browser.run(asked) / 1e3:.2f} | |", flush=True)
        assert "pair" not in name or browser.run("document.querySelectorAll('#dialog table.pairs td').length")
    print(f"problems: {browser.problems}; elements: {browser.run('document.querySelectorAll(`*`).length')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[102, 1000])
    parser.add_argument("--seeds", type=int, default=1, help="calibration seeds of each method, which make one row")
    parser.add_argument("--tables", action="store_true", help="neither figures nor grids nor a page")
    parser.add_argument("--profile", action="store_true", help="print where a second report spends its time")
    parser.add_argument("--keep", type=Path, help="folder for runs and reports, used again where it is there")
    options = parser.parse_args()
    program = find_browser()
    with tempfile.TemporaryDirectory() as place:
        browser = Browser(program, Path(place) / "profile") if program else None
        for count in options.runs:
            root = (options.keep or Path(place)) / f"{count}_{options.seeds}"
            if not root.is_dir():
                write_runs(root / "sweep", count, seeds=options.seeds)
            (root / "sweep" / STORE).unlink(missing_ok=True)
            print(f"\n{count} runs\n| what | seconds | processor s |\n|---|---|---|", flush=True)
            measure_reading(root / "sweep")
            measure_report(root / "sweep", root / "report", tables=options.tables, profile=options.profile)
            if browser is not None and not options.tables:
                measure_page(browser, root / "report" / "report.html")
        if browser is not None:
            browser.close()


if __name__ == "__main__":
    main()
