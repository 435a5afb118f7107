"""Memory that a call takes beyond what is held before it."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

from segquant_bench.pipelines.runtime.cost import measured

MIB = 2**20


def resident_mb() -> float | None:
    """Resident memory in MiB, after what is free was given back; None outside of Linux."""
    gc.collect()
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    _trim()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), None)


def _trim() -> None:
    """Give the allocator's free memory back to the system, which would hide what a call takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)


def peak_growth_mb(call: Callable[[], object]) -> float | None:
    """Peak memory in MiB during a call, above what was resident; of the GPU where torch uses one.

    None where the system tells no peak that can be reset.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / MIB
    resident = resident_mb()
    with measured() as cost:
        call()
    return None if resident is None else max(cost.peak_memory_mb - resident, 0.0)
