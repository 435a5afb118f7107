from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Cost:
    """Wall-clock seconds and peak memory in MB (2**20 bytes)."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    peak_device_memory_mb: float | None = None


def _reset_peak() -> bool:
    """Restart the peak of resident memory; False where impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_mb(was_reset: bool) -> float:
    if was_reset:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def held_mb() -> dict[str, float]:
    """Memory in MB (2**20 bytes) that the process holds now, by name; empty where the system does not tell."""
    found = {}
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        found["memory_mb"] = pages * resource.getpagesize() / 2**20
    except (OSError, ValueError, IndexError):  # another system
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["device_memory_mb"] = torch.cuda.memory_allocated() / 2**20
    return found


@contextmanager
def measured() -> Iterator[Cost]:
    """Fill a `Cost` with what the block took; outside Linux the peak is the process's."""
    cost, was_reset, start = Cost(), _reset_peak(), time.perf_counter()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    yield cost
    cost.seconds = time.perf_counter() - start
    cost.peak_memory_mb = _peak_mb(was_reset)
    torch = sys.modules.get("torch")  # the block may have imported it
    if torch is not None and torch.cuda.is_initialized():
        cost.peak_device_memory_mb = torch.cuda.max_memory_allocated() / 2**20
