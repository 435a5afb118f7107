"""What a report on many runs costs: reading results.json files, the store of them, and the whole report.

    python -m benchmarks.report_cost RESULTS_JSON [--runs 1000] [--no-figures] [--grid] [--profile]

The runs are copies of one that finished (pictures and evaluation are shared), with other methods, precisions, models
and calibration seeds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from segquant_bench.eval.render import write_report
from segquant_bench.eval.results import load_results
from segquant_bench.eval.store import STORE, Store

METHODS = (
    "rtn", "mse", "smoothquant", "smoothquant_plus", "awq", "gptq", "gptq_mse", "smoothquant_gptq", "svdquant",
    "svdquant_gptq", "quarot", "quarot_mse", "segquant_a", "segquant_g", "segquant_plus", "segquant_r", "auto",
    "ptq4dit", "q_diffusion", "vidit_q", "convrot",
)  # fmt: skip
PRECISIONS = ("w8a8_tensor", "w8a8", "w8a8_dynamic", "w4a8_channel", "w4a8", "w4a4")
SEEDS = range(3)
BEST = """SELECT model, precision, quantizer, min(output_error) FROM runs GROUP BY model, precision"""


def kinds() -> Iterator[tuple[str, str, str, int]]:
    """Model, method, precision and seed of the runs, as many as are asked for."""
    for model in range(100):
        for method, precision, seed in product(METHODS, PRECISIONS, SEEDS):
            yield f"model{model}", method, precision, seed


def write_runs(source: Path, root: Path, count: int) -> None:
    raw = json.loads(source.read_text(encoding="utf-8"))
    places = {name: (source.parent / place).resolve() for name, place in raw["artifacts"].items()}
    for number, (model, method, precision, seed) in zip(range(count), kinds(), strict=False):
        folder = root / f"{number}_{method}_{precision}"
        folder.mkdir(parents=True)
        for name, place in places.items():
            (folder / name).symlink_to(place)
        record = {
            **raw,
            "artifacts": {name: name for name in places},
            **_changed(raw, model, method, precision, seed, number),
        }
        (folder / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _changed(raw: dict[str, Any], model: str, method: str, precision: str, seed: int, number: int) -> dict[str, Any]:
    config = json.loads(json.dumps(raw["config"]))
    config["calibration"]["seed"] = seed
    config["quantizer"]["_target_"] = f"segquant.presets.{method}"
    config["model"]["name"], config["precision"]["name"] = model, precision
    factor = 1 + number % 97 / 97
    return {
        "name": f"{method}_{precision}", "model": model, "model_fingerprint": model, "quantizer": method,
        "precision": precision, "config": config, "config_hash": f"{number:012x}",
        "output_error": raw["output_error"] * factor, "weight_bytes": int(raw["weight_bytes"] * factor),
        "layer_errors": {layer: error * factor for layer, error in raw["layer_errors"].items()},
    }  # fmt: skip


class Clock:
    """Seconds, and those of the processor: a busy machine slows the former more."""

    def __init__(self) -> None:
        self.begun = (time.perf_counter(), time.process_time())

    def tell(self, what: str) -> None:
        wall, processor = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
        print(f"| {what} | {wall:.1f} | {processor:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS_JSON")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--no-figures", action="store_true", help="tables and comparisons alone")
    parser.add_argument("--grid", action="store_true", help="with the picture grids")
    parser.add_argument("--profile", action="store_true", help="print where the last report spent its time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_runs(options.results, root / "sweep", options.runs)
        megabytes = sum(path.stat().st_size for path in root.rglob("results.json")) / 1e6
        print(
            f"{options.runs} runs, {megabytes:.0f} MB of results.json\n| what | seconds | processor s |\n|---|---|---|"
        )
        for what in ("read", "read again"):
            clock = Clock()
            load_results([root / "sweep"])
            clock.tell(what)
        store = Store(root / STORE)
        for what in ("into the store", "from the store"):
            clock = Clock()
            load_results([root / "sweep"], load=store.load)
            clock.tell(what)
        clock = Clock()
        rows = len(store.query(BEST)[1])
        clock.tell(f"a query that gives {rows} rows")
        drawn = {"grid": options.grid, "figures": () if options.no_figures else ("png",)}
        for what in ("report", "report again"):
            profile = cProfile.Profile()
            clock = Clock()
            if options.profile and what == "report again":
                profile.runcall(write_report, [root / "sweep"], root / "report", **drawn)
            else:
                write_report([root / "sweep"], root / "report", **drawn)
            clock.tell(what)
        if options.profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    main()
