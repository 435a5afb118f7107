from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from segquant_bench.pipelines.runtime.paths import HOME

PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "safetensors", "torchmetrics", "clean-fid",
    "open-clip-torch", "timm", "scipy", "numpy", "hydra-core", "wandb", "segquant",
    "nvidia-modelopt", "torchao", "optimum-quanto", "sdnq", "bitsandbytes", "gguf",
)  # fmt: skip


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions_of(PACKAGES)}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the installed ones."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_record(device: str) -> dict[str, object]:
    """Machine, processor, threads and accelerator of a torch device."""
    import torch  # put off: keys need versions alone

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


def processor_name() -> str:
    """As the system calls it; of Linux, "model name" in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """This checkout's commit, with "+" if tracked files differ; None outside git."""
    root = HOME
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
