"""What a run cost and where it ran: seconds, peak memory, versions, device, commit, hashes of files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "safetensors", "torchmetrics", "clean-fid",
    "open-clip-torch", "timm", "scipy", "numpy", "hydra-core", "wandb", "segquant",
    "nvidia-modelopt", "torchao", "optimum-quanto", "sdnq",
)  # fmt: skip


@dataclass
class Cost:
    """Wall-clock seconds and peak resident memory in MB (2**20 bytes) of a piece of work."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    peak_device_memory_mb: float | None = None


def _reset_peak() -> bool:
    """Start a new high-water mark of resident memory; False where the system does not allow it."""
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


@contextmanager
def measured() -> Iterator[Cost]:
    """Fill a `Cost` with what the block took.

    Where the high-water mark cannot be reset (not Linux) the peak is that of the process so far. CUDA's peak
    is given apart if the process uses CUDA.
    """
    cost, was_reset, start = Cost(), _reset_peak(), time.perf_counter()
    torch = sys.modules.get("torch")
    on_device = torch is not None and torch.cuda.is_initialized()
    if on_device:
        torch.cuda.reset_peak_memory_stats()
    yield cost
    cost.seconds = time.perf_counter() - start
    cost.peak_memory_mb = _peak_mb(was_reset)
    if torch is not None and torch.cuda.is_initialized():
        cost.peak_device_memory_mb = torch.cuda.max_memory_allocated() / 2**20


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_record(device: str) -> dict[str, object]:
    """Machine, processor, threads and accelerator behind a torch device such as "cpu" or "cuda"."""
    import torch

    record: dict[str, object] = {
        "type": device,
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device.startswith("cuda"):
        record["accelerator"] = torch.cuda.get_device_name()
    return record


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of this checkout, with "+" where tracked files differ; None outside a git checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=20
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root, capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None  # git is not installed, or refuses this directory
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """sha256 of a file; size and mtime only let one process remember what it has read."""
    if path.parent.name == "blobs" and len(path.name) == 64:
        return path.name  # the hub's cache names large files by their sha256
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    path = path.resolve()
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


def tree_digest(root: Path, suffixes: tuple[str, ...]) -> str:
    """One hash of the names and contents of all files below `root` with these suffixes, hidden ones not."""
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix in suffixes and path.is_file() and not hidden:
            whole.update(f"{relative.as_posix()}\0{file_digest(path)}\n".encode())
    return whole.hexdigest()[:16]


@lru_cache(maxsize=8)
def source_digest(package: str) -> str:
    """One hash of a package's Python files, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {package!r} is not installed")
    return tree_digest(Path(next(iter(spec.submodule_search_locations))), (".py",))


def modules_digest(*names: str) -> str:
    """One hash of modules of this package, by file name."""
    here = Path(__file__).resolve().parent
    return hashlib.sha256("".join(file_digest(here / f"{name}.py") for name in names).encode()).hexdigest()[:16]
