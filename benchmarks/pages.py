"""What pages of results share: runs of sweeps, what `segquant-report` makes of them, tables between marks, archives."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext

from segquant_bench.eval.cli import main as report
from segquant_bench.pipelines.config.grids import GridSweeper
from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.main import CONF

RESULTS, PER_IMAGE = "results.json", "evaluation/per_image.json"
KEPT = (RESULTS, PER_IMAGE)
"""Of a run, in the archive."""
Line = Mapping[str, str]


def jobs(experiment: str) -> list[list[str]]:
    """The overrides of every job of an experiment, without the experiment's own."""
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"experiment={experiment}"], return_hydra_config=True)
        settings = config.hydra.sweeper
        sweeper = GridSweeper(settings.params, settings.get("grids"))
        sweeper.hydra_context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        return sweeper.jobs([])


def newest(directories: Iterable[Path], name: Callable[[dict[str, Any]], str]) -> dict[str, Path]:
    """results.json files by their runs' names, of one name the newest.

    Args:
        name: of a run by its results, a path in the archive; empty for one that the page leaves out.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for directory in directories for path in directory.rglob(RESULTS)):
        key = name(json.loads(path.read_text(encoding="utf-8")))
        if key and (key not in found or path.stat().st_mtime > found[key].stat().st_mtime):
            found[key] = path
    return found


def run_name(result: Mapping[str, Any]) -> str:
    """Of a run that its model, method, precision and calibration seed tell from all others."""
    return f"{result['model']}/{result['name']}_seed{result['config']['calibration']['seed']}"


def make_report(arguments: Sequence[str]) -> None:
    """`segquant-report`, which must write all of it."""
    if report(arguments):
        sys.exit("segquant-report did not write all of it: see above")


def archive(runs: Mapping[str, Path], path: Path, kept: Sequence[str] = KEPT) -> None:
    """What is kept of the folders of results.json files, by the runs' names; the same bytes for the same runs."""
    members = {
        f"{name}/{part}": run.parent / part
        for name, run in runs.items()
        for part in kept
        if (run.parent / part).is_file()
    }
    with tarfile.open(path, "w:xz") as file:
        for name, member in sorted(members.items()):
            info = tarfile.TarInfo(name)
            info.size = member.stat().st_size
            with member.open("rb") as content:
                file.addfile(info, content)


def filled(text: str, name: str, table: str) -> str:
    """The page with another table between its marks."""
    start, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
    if start not in text:
        sys.exit(f"the page has no place for the table {name!r}: put {start.strip()!r} and {end!r} into its README.md")
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}{table}{end}", text, flags=re.DOTALL)


def figures(value: float, count: int = 3) -> str:
    """So many significant digits, without a zero before the point.

    >>> figures(0.04198), figures(1.834), figures(0.00825), figures(-0.14)
    ('.0420', '1.83', '.00825', '-.140')
    """
    digits = max(0, count - 1 - math.floor(math.log10(abs(value)))) if value else 1
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Callable[[str], bool]) -> str:
    """A table; `right` says which heads are over numbers."""
    rule = ["--:" if right(head) else "---" for head in heads]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, rule, *rows)).replace("| --- |", "|---|")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Lines by the names of columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Line]) -> None:
    """Lines of one kind."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
