"""What planning a shipped architecture at full size costs: processor seconds, and the process's peak memory.

    python -m benchmarks.plan_cost [NAME …]

Beside the seconds stands their ratio to a fixed piece of Python run before and after (`unit`): a busy machine slows
both. The plan was built to stay below 24 s, which is 110 units.
"""

from __future__ import annotations

import argparse
import time

from segquant import find_segments
from segquant_bench.pipelines.architectures import architecture, architecture_names, meta_denoiser
from segquant_bench.pipelines.plan.counts import count_rows, layer_entries
from segquant_bench.pipelines.runtime.cost import measured


def unit() -> float:
    """Processor seconds of a fixed piece of Python that makes small objects, as a plan does."""
    start, kept = time.process_time(), {}
    for number in range(1_000_000):
        kept[number % 5000] = (number, str(number), [number])
    return time.process_time() - start


def plan(name: str) -> tuple[float, int, float]:
    """Processor seconds, number of layers, and peak MB of the process."""
    architecture(name)  # imports diffusers, whose time is not the plan's
    start = time.process_time()
    with measured() as cost:
        model, inputs = meta_denoiser(name)
        layers = layer_entries(model, find_segments(model, kwargs=inputs), count_rows(model, inputs))
    return time.process_time() - start, len(layers), cost.peak_memory_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(architecture_names()), metavar="NAME")
    print("| architecture | layers | processor s | units | peak MB |\n|---|---|---|---|---|")
    for name in parser.parse_args().names:
        before = unit()
        seconds, layers, peak = plan(name)
        ratio = 2 * seconds / (before + unit())
        print(f"| {name} | {layers} | {seconds:.1f} | {ratio:.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
