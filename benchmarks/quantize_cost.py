"""What quantizing costs: seconds, processor seconds, passes over the data and memory, with the error that it buys.

    OMP_NUM_THREADS=1 python -m benchmarks.quantize_cost --methods rtn segquant_g --precisions w8a8 w4a8

The model is `benchmarks.random_sd3`, calibrated on 64 denoiser calls, the error is that of its output on fresh inputs.
Every row is measured in a process of its own, so that memory that one method leaves behind hides nothing of the next.
"""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from benchmarks.random_sd3 import denoiser_inputs, random_sd3
from segquant import (
    PRECISIONS,
    Method,
    find_segments,
    model_weight_bytes,
    output_error,
    presets,
    quantize_with_outcome_,
)

METHODS = (
    "rtn", "percentile", "mse", "smoothquant", "smoothquant_plus", "awq", "ptq4dit", "quarot", "gptq", "svdquant",
    "svdquant_gptq", "q_diffusion", "segquant_a", "segquant_g", "segquant_plus", "segquant_r", "auto",
)  # fmt: skip
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """What to measure, and on what."""

    method: str
    precision: str
    calls: int = 64
    fresh: int = 24
    layers: int = 6
    heads: int = 6
    workers: int = 1
    streaming: bool = False
    memory_limit: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Cost:
    """A row of the table. Wall seconds of finding segments, reading data and the rest; processor seconds in all;
    readings of the data; peak memory above the float model's, and bytes stored for the quantized one, in MiB;
    relative error of the output on fresh inputs."""

    method: str
    precision: str
    graph: float
    observe: float
    solve: float
    cpu: float
    passes: int
    peak: float
    stored: float
    error: float


class Stopwatch:
    """Seconds by stage: the time between two events belongs to the stage of the later one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Progress of `quantize_`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


class Peak:
    """Most memory in use since it was made, above what was in use then, in MiB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._base = float(torch.cuda.memory_allocated(device))
        else:
            CLEAR.write_text("5", encoding="utf-8")  # sets the peak back to what is in use
            self._base = _status("VmRSS")

    def above(self) -> float:
        """The peak so far."""
        cuda = self.device.type == "cuda"
        now = torch.cuda.max_memory_allocated(self.device) if cuda else _status("VmHWM")
        return (now - self._base) / MIB


def _status(name: str) -> float:
    (line,) = (line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return float(line.split()[1]) * 1024


def measure(setting: Setting) -> Cost:
    """Quantize a random SD3 as `setting` says and take the cost."""
    device = torch.device(setting.device)
    method: Method = getattr(presets, setting.method)(setting.precision)
    model = random_sd3(setting.layers, setting.heads).to(device)
    calibration, fresh = (
        [_to(entry, device) for entry in denoiser_inputs(model, calls, seed)]
        for calls, seed in ((setting.calls, 1), (setting.fresh, 2))
    )
    found = copy.deepcopy(model)
    with torch.no_grad():
        found(**calibration[0])
    peak, watch, cpu = Peak(device), Stopwatch(), time.process_time()
    segments = find_segments(found, (), calibration[0])
    watch("graph")
    outcome = quantize_with_outcome_(
        found, method, calibration, segments, progress=watch, workers=setting.workers, streaming=setting.streaming,
        memory_limit=setting.memory_limit,
    )  # fmt: skip
    watch("rest")
    cpu = time.process_time() - cpu
    seconds, above = dict(watch.seconds), peak.above()
    graph, observe = seconds.pop("graph"), seconds.pop("observe", 0.0)
    return Cost(
        setting.method, setting.precision, graph, observe, sum(seconds.values()), cpu, outcome.passes, above,
        model_weight_bytes(found) / MIB, output_error(model, found, fresh),
    )  # fmt: skip


def _to(inputs: dict[str, torch.Tensor | bool], device: torch.device) -> dict[str, torch.Tensor | bool]:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}


def table(costs: Sequence[Cost]) -> str:
    """Markdown; seconds and MiB."""
    names = [field.name for field in fields(Cost)]
    lines = ["| " + " | ".join(names) + " |", "|---|---" + "|---:" * (len(names) - 2) + "|"]
    for cost in costs:
        cells = [getattr(cost, name) for name in names]
        cells = [f"{cell:.3f}" if name == "error" else f"{cell:.1f}" if isinstance(cell, float) else str(cell)
                 for name, cell in zip(names, cells, strict=True)]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def refused(method: str, precision: str) -> str | None:
    """Why a preset does not make a method of that precision; None if it does."""
    try:
        getattr(presets, method)(precision)
    except ValueError as error:
        return str(error)
    return None


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="NAME")
    parser.add_argument("--precisions", nargs="+", default=("w8a8", "w4a8"), choices=PRECISIONS, metavar="NAME")
    for name in ("calls", "fresh", "layers", "heads", "workers"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Setting, name))
    parser.add_argument("--memory-limit", type=int, default=None, help="bytes for Gram matrices")
    parser.add_argument("--streaming", action="store_true")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; methods that a precision leaves out are named on the error output."""
    options = vars(arguments(argv))
    methods, precisions = options.pop("methods"), options.pop("precisions")
    context, costs = multiprocessing.get_context("spawn"), []
    for precision in precisions:
        for method in methods:
            if (reason := refused(method, precision)) is not None:
                sys.stderr.write(f"left out: {reason}\n")
                continue
            with context.Pool(1) as pool:
                costs.append(pool.apply(measure, (Setting(method, precision, **options),)))
            sys.stderr.write(table(costs[-1:]).splitlines()[-1] + "\n")
    sys.stdout.write(table(costs))


if __name__ == "__main__":
    main()
