"""The operators `segquant_cpu::…`: compiled once for a machine, at the first use, by the system's C++ compiler."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from segquant.errors import QuantizationError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "native"
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-march=native", "-mavx2", "-mfma", "-mf16c")
LIBRARIES = ("torch_cpu", "c10")
TORCH = Path(torch.__file__).parent
CAPABLE = ("AVX2", "AVX512")
CPUINFO = Path("/proc/cpuinfo")
UNFINISHED = "unfinished-"
LAST = 3
"""Lines of a compiler's message that are shown."""


@lru_cache(maxsize=1)
def why_unavailable() -> str | None:
    """Why the operators cannot run in this process, as the end of a sentence; None once they are loaded."""
    if sys.platform == "win32":
        return "is compiled for Linux and macOS, and this is Windows: 'reference' runs there"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in CAPABLE:
        return f"needs a processor with AVX2, and this one has {capability}"
    try:
        torch.ops.load_library(library())
    except (QuantizationError, OSError) as error:
        return str(error)
    return None


def library() -> Path:
    """The compiled library; compiled now if it is not there.

    Raises:
        QuantizationError: no compiler, or it refuses; no folder to compile into.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise QuantizationError("needs a C++ compiler, and there is none: install g++ or clang, or set CXX")
    command = [compiler, *FLAGS, *os.environ.get("CXXFLAGS", "").split(), *_paths()]
    path = cache() / f"cpu-{_digest(command)}.so"
    if not path.is_file():
        try:
            _compile(command, path)
        except OSError as error:
            raise QuantizationError(
                f"needs its C++ kernel, which cannot be compiled into {path.parent} ({error.strerror or error}); set "
                "SEGQUANT_CACHE to a folder that can be written"
            ) from error
    return path


def cache() -> Path:
    """Where compiled libraries lie: SEGQUANT_CACHE, else the user's cache folder.

    Raises:
        QuantizationError: the user has no home.
    """
    own = os.environ.get("SEGQUANT_CACHE")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segquant"
    except RuntimeError as error:
        raise QuantizationError(
            "needs a folder for its compiled kernel, and this user has no home; set SEGQUANT_CACHE to one"
        ) from error


def _paths() -> list[str]:
    include = TORCH / "include"
    return [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}", f"-L{TORCH / 'lib'}"]


def _digest(command: Sequence[str]) -> str:
    """Of what the library is made of: the sources, torch, the command, and this processor's instructions."""
    digest = hashlib.sha256(repr((torch.__version__, command, _instructions())).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _instructions() -> str:
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{torch.backends.cpu.get_cpu_capability()} {platform.processor()} {flags}"


def _compile(command: Sequence[str], path: Path) -> None:
    """A file of its own takes the name at the end; processes that come meanwhile wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "lock").open("w") as lock:
        try:  # let go of by the system if the process dies
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("CPU kernels: another process is compiling them, waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            for left in path.parent.glob(f"{UNFINISHED}*"):  # of processes that were killed: this one has the lock
                left.unlink(missing_ok=True)
            log.info("CPU kernels: compiling, once per machine; about half a minute")
            began = time.monotonic()
            _compile_now(command, path)
            log.info("CPU kernels: compiled in %.0f s", time.monotonic() - began)


def _compile_now(command: Sequence[str], path: Path) -> None:
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=".so")
    os.close(handle)
    libraries = [f"-l{name}" for name in LIBRARIES]
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    full = [*command, *sources, "-o", made, *libraries]
    try:
        done = subprocess.run(full, capture_output=True, text=True, check=False)
        if done.returncode:
            message = " | ".join(done.stderr.strip().splitlines()[-LAST:])
            raise QuantizationError(f"needs its C++ kernel, which {command[0]} does not compile ({message})")
        os.replace(made, path)
    finally:
        Path(made).unlink(missing_ok=True)
