"""Free memory."""

from __future__ import annotations

from pathlib import Path

import torch

SHARE = 0.5
"""Of the free memory that Gram matrices may take; the solver and the model's activations need the rest."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


ROOM = 32
"""A float copy is kept where so many of its size are free: what a layer computes is larger than its weight."""


def free_bytes(device: torch.device) -> int | None:
    """Free bytes of a device (CPU: available, within the control group's limit); None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    within = _left_in_group()
    return available if within is None else min(available, within)


def _left_in_group() -> int | None:
    """Bytes below the control group's limit, file cache counted as free; None without one."""
    limit, used, stat = (CGROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.is_file() and used.is_file() and stat.is_file()):
        return None
    most = limit.read_text(encoding="utf-8").strip()
    if most == "max":
        return None
    cached = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines())
    return max(0, int(most) - int(used.read_text(encoding="utf-8")) + int(cached.get("inactive_file", 0)))


def has_room(size: int, device: torch.device) -> bool:
    """Whether so many bytes may be taken for speed alone; yes where it is not known what is free."""
    free = free_bytes(device)
    return free is None or size * ROOM <= free


def gram_limit(device: torch.device) -> int | None:
    """Default bytes for Gram matrices; None if unknown."""
    free = free_bytes(device)
    return None if free is None else int(free * SHARE)
