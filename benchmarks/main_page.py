"""docs/main and docs/families from the runs of their experiments: tables, comparisons, figures, the results themselves.

    python -m benchmarks.main_page outputs/sweeps/main
    python -m benchmarks.main_page outputs/sweeps/families --page families

A part of the experiment is enough: what has not run is left out, and a line of the page says how many jobs have. It
writes what `segquant-report` makes of the runs, and fills the tables of the page; the sentences are a person's.
results.tar.xz, unpacked, gives the same page again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import save

from benchmarks import pages
from benchmarks.main_tables import BUDGETED, Couple, Row, chosen, couples, pairs_table, rows_of, rows_table
from benchmarks.pages import Line
from segquant_bench.eval.report.runs.groups import DENOISER
from segquant_bench.eval.report.runs.seeds import merge_seeds
from segquant_bench.eval.results import load_results

DOCS = Path(__file__).parents[1] / "docs"
MADE = ("table.md", "comparisons.csv", "comparisons.md", "metrics.png", "bytes.png")
"""Of the report, on the page."""
FEATURES = "evaluation/features.safetensors"
"""Of which fid_ref without each picture is kept, to compare it; not the features."""
OURS = {"segquant_g": "", "segquant_plus": "", "segquant_r": ""}
BASELINES = {"rtn": "", "smoothquant_gptq": "w8", "svdquant_gptq": "w4", "gptq_mse": "", "quarot_mse": ""}
"""Methods of a table, with how the names of their precisions begin."""


@dataclass(frozen=True)
class Shown:
    """One table of rows: its methods (see `chosen`), its columns, whether a tool joins in, and which rows may."""

    methods: Mapping[str, str]
    columns: Sequence[str]
    tool: bool = False
    admits: Callable[[Row], bool] = lambda row: True


@dataclass(frozen=True)
class Page:
    """A folder of docs, called as its experiment is; tables by the names of their marks."""

    tables: Mapping[str, Shown]
    pairs: Sequence[tuple[str, str]] = field(default_factory=tuple)


IN_FAMILIES = {**BASELINES, "smoothquant": "", **OURS}
PAGES = {
    "main": Page(
        {"first": Shown(
            {**BASELINES, "segquant_a": "", **OURS, "gptq_mixed": "", "auto": ""},
            ("weights", "fid_ref", "psnr", "layer error", "output error", "quantize"), tool=True,
        )},
        [("segquant_plus", "svdquant_gptq"), ("segquant_plus", "gptq_mse"), ("segquant_r", "quarot_mse"),
         ("segquant_g", "smoothquant_gptq"), ("auto, 1.0 × bytes", "gptq_mixed, 1.0 × bytes"),
         ("auto, 1.1 × bytes", "gptq_mixed, 1.1 × bytes"), ("auto, 1.0 × bytes", "gptq_mse"),
         ("auto, 1.1 × bytes", "gptq_mse")],
    ),
    "families": Page(
        {
            "denoisers": Shown(IN_FAMILIES, ("weights", "psnr", "layer error", "output error", "fid_ref"),
                               admits=lambda row: row.parts == (DENOISER,)),
            "controlnet": Shown(IN_FAMILIES,
                                ("weights", "psnr", "layer error", "other components' error", "fid_ref"),
                                admits=lambda row: row.parts != (DENOISER,)),
        },
        [("segquant_g", "smoothquant_gptq"), ("segquant_plus", "svdquant_gptq"), ("segquant_plus", "gptq_mse"),
         ("segquant_r", "quarot_mse"), ("segquant_r", "segquant_g")],
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Report on the runs, and write the page's files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="sweeps with results.json files")
    parser.add_argument("--page", choices=sorted(PAGES), default="main", help="which page (default: main)")
    parser.add_argument("--out", type=Path, help="folder of the page, with its README.md (default: its own in docs)")
    options = parser.parse_args(argv)
    out = options.out or DOCS / options.page
    with staged(pages.newest(options.directories, archived_name)) as (folder, runs):
        rows = rows_of(merge_seeds(load_results([folder])))
        pages.make_report([str(folder), "--no-grid", "--output", str(folder / "report")])
        compared = compare(folder, list(couples(rows, PAGES[options.page].pairs)))
        text = page_text((out / "README.md").read_text(encoding="utf-8"), options.page, rows, compared, len(runs))
        for name in MADE:
            if not (folder / "report" / name).is_file():
                sys.exit(f"the report has no {name}: see above")
            shutil.copyfile(folder / "report" / name, out / name)
        pages.write_csv(out / "pairs.csv", compared)
        pages.archive(runs, out / "results.tar.xz", (*pages.KEPT, FEATURES))
    (out / "README.md").write_text(text, encoding="utf-8")


def compare(folder: Path, found: Sequence[Couple]) -> list[dict[str, str]]:
    """The report's comparisons of these alone, chosen before the runs: p-values are adjusted for no others."""
    if not found:
        return []
    wanted = dict.fromkeys(f"{a.told}:{b.told}" for _, a, b in found)
    words = [word for pair in wanted for word in ("--pairs", pair)]
    pages.make_report([str(folder), "--tables", "--output", str(folder / "pairs"), *words])
    return pages.read_csv(folder / "pairs" / "comparisons.csv")


def page_text(text: str, name: str, rows: Sequence[Row], compared: Sequence[Line], count: int) -> str:
    """The page with its tables filled from the runs and their comparisons."""
    page = PAGES[name]
    text = pages.filled(text, "jobs", jobs_line(name, count))
    for mark, shown in page.tables.items():
        members = chosen((row for row in rows if shown.admits(row)), shown.methods, tool=shown.tool)
        text = pages.filled(text, mark, rows_table(members, shown.columns))
    return pages.filled(text, "pairs", pairs_table(couples(rows, page.pairs), compared))


def jobs_line(experiment: str, count: int) -> str:
    """How much of the experiment the page is made of."""
    every = len(pages.jobs(experiment))
    if count > every:
        sys.exit(f"{count} runs are more than the {every} jobs of experiment={experiment}: give its folders alone")
    return f"Made of {count} of {every} jobs of `experiment={experiment}`.\n"


def archived_name(result: Mapping[str, Any]) -> str:
    """A run's name in the archive, with what else tells it from others: components and budget.

    A usual budget is not told: reports take the first of a method's runs by name, and compare it with all others.
    """
    config, usual = result["config"], BUDGETED.get(result["quantizer"])
    parts = list(config.get("quantize") or [DENOISER])
    budget = (config["quantizer"].get("budget") or {}) if usual else {}
    told = [f"{key}{budget[key]}" for key in ("bytes", "average_bits") if budget.get(key) not in (None, usual)]
    return "_".join([pages.run_name(result), *(parts if parts != [DENOISER] else []), *told])


@contextmanager
def staged(runs: Mapping[str, Path]) -> Iterator[tuple[Path, dict[str, Path]]]:
    """A folder for a while with what is kept of the runs, as the archive has it, and their results.json files there."""
    with tempfile.TemporaryDirectory() as name:
        copies = {}
        for run, path in runs.items():
            copies[run] = Path(name, run, pages.RESULTS)
            (copies[run].parent / FEATURES).parent.mkdir(parents=True)
            for part in pages.KEPT:
                if (path.parent / part).is_file():
                    shutil.copyfile(path.parent / part, copies[run].parent / part)
            if (path.parent / FEATURES).is_file():
                _keep_left_out(path.parent / FEATURES, copies[run].parent / FEATURES)
        yield Path(name), copies


def _keep_left_out(source: Path, target: Path) -> None:
    with safe_open(source, framework="numpy") as stored:
        kept = {name: stored.get_tensor(name) for name in stored.keys() if name.startswith("left_out/")}  # noqa: SIM118
        content = save(kept, stored.metadata())
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":"))
    # the library has another order of keys every time, and the archive the same bytes for the same runs
    target.write_bytes(content[:8] + header.encode().ljust(size) + content[8 + size :])


if __name__ == "__main__":
    main()
