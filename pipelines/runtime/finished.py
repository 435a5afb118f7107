from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """A finished stage.

    Attributes:
        key: hash of everything it depends on.
        seconds: wall-clock, also of an earlier run.
        peak_device_memory_mb: None on a CPU.
        cached: whether this run found it finished.
    """

    name: str
    key: str
    path: Path
    seconds: float
    peak_memory_mb: float
    peak_device_memory_mb: float | None
    cached: bool
