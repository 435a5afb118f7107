"""Memory that a call takes beyond what is held before it."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

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


class _Allocated(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks"),
            "keepcost",  # free bytes at the heap's end
        )
    ]


def _trim() -> None:
    """Give the allocator's free memory back to the system, which would hide what a call takes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # of glibc alone
        libc.malloc_trim(0)
        if hasattr(libc, "mallinfo2"):  # since glibc 2.33
            _empty_top(libc)


def _empty_top(libc: ctypes.CDLL) -> None:
    """Give back the free memory at the heap's end, which malloc_trim keeps once others have moved that end too.

    A block of that size is taken, its pages are given back (they come again, empty, when touched), and it is freed.
    """
    libc.mallinfo2.restype = _Allocated
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes, libc.madvise.argtypes = (ctypes.c_void_p,), (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size, page = libc.mallinfo2().keepcost - mmap.PAGESIZE, mmap.PAGESIZE
    block = libc.malloc(size) if size > MIB else None
    if block is not None:
        start = -(-block // page) * page
        libc.madvise(start, (block + size - start) // page * page, mmap.MADV_DONTNEED)
        libc.free(block)


def peak_growth_mb(call: Callable[[], object]) -> float | None:
    """Peak memory in MiB during a call, above what was resident; of the GPU where torch uses one.

    It is the process's: nothing else should run beside it. None where the system tells no peak that can be reset.
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
