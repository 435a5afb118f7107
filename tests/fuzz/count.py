"""How readings of damaged files end, by reader: `python -m tests.fuzz.count [--each 100] [NAME …]`."""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

from tests.fuzz import of_eval, of_others, of_pipelines, of_segquant
from tests.fuzz.target import fuzz

FIRST = 5000
"""The first seed; the tests have others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of readers' names (default: all)")
    parser.add_argument("--each", type=int, default=100, help="damaged files for each reader (default: 100)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    print("| reader | damaged files | read | one sentence | faults |\n|---|---:|---:|---:|---:|")
    totals = [0, 0, 0]
    for target in (*of_segquant.TARGETS, *of_eval.TARGETS, *of_pipelines.TARGETS, *of_others.TARGETS):
        if options.names and not target.name.startswith(tuple(options.names)):
            continue
        with tempfile.TemporaryDirectory() as place:
            counts = fuzz(target, Path(place).resolve(), range(FIRST, FIRST + options.each))
        found = [counts.read, counts.refused, len(counts.faults)]
        totals = [total + each for total, each in zip(totals, found, strict=True)]
        print(f"| {target.name} | {options.each} | {' | '.join(map(str, found))} |", flush=True)
        print("".join(f"{fault}\n" for fault in counts.faults), end="")
    print(f"| all | {sum(totals)} | {' | '.join(map(str, totals))} |")


if __name__ == "__main__":
    main()
