"""Every reader of files that may be somebody else's, or damaged: it returns, or refuses in one sentence.

It takes no long time and no much memory, opens no file beside its folder, and reaches no network. Each fault that is
told names its target and its seed: `list(fuzz(target, tmp_path, [seed]).faults)` repeats it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import of_eval, of_others, of_pipelines, of_segquant
from tests.fuzz.target import Target, fuzz

TARGETS = {
    target.name: target
    for target in (*of_segquant.TARGETS, *of_eval.TARGETS, *of_pipelines.TARGETS, *of_others.TARGETS)
}
SECONDS = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """What libraries say of odd files is for whoever reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _seeds(seconds: float) -> Iterator[int]:
    """Others than those of the fast tests."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda _: time.monotonic() < end, itertools.count(1000))


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    counts = fuzz(target, tmp_path.resolve(), range(target.fast))
    assert not counts.faults
    assert counts.read + counts.refused == target.fast


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_minute_of_damaged_files(name: str, tmp_path: Path) -> None:
    counts = fuzz(TARGETS[name], tmp_path.resolve(), _seeds(SECONDS))
    assert not counts.faults
    assert counts.read + counts.refused > 50


def _secret(folder: Path) -> None:
    (folder.parent / "outside" / "secret.json").read_text()


def _network(folder: Path) -> None:
    with contextlib.suppress(OSError):
        socket.getaddrinfo("localhost", 80)


def _traceback(folder: Path) -> None:
    raise KeyError("what")


def _large(folder: Path) -> None:
    bytearray(1 << 36)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(_secret, "was opened"), (_network, "getaddrinfo"), (_traceback, "KeyError"), (_large, "MemoryError")],
)
def test_faults_are_told(wrong: object, words: str, tmp_path: Path) -> None:
    """Of readers that do what none may, where the file is damaged."""

    def read(folder: Path) -> None:
        if folder.name == "folder":
            wrong(folder)  # type: ignore[operator]

    target = Target("wrong", lambda folder: (folder / "a.json").write_text('{"a": 1}'), read, (ValueError,))
    counts = fuzz(target, tmp_path.resolve(), range(3))
    assert len(counts.faults) == 3 and all(words in fault for fault in counts.faults)


def test_a_reading_that_never_ends_is_told(tmp_path: Path) -> None:
    """In a process of its own: an alarm is the whole process's."""
    code = """
from pathlib import Path
from tests.fuzz import guard
guard.SECONDS, guard.WAITING = 0.2, 2
Path("outside").mkdir()
try:
    with guard.guarded(Path("outside").resolve()):
        while True:
            pass
except guard.Forbidden as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "more than 0.2 s\n"), done.stderr
