"""Where and when the kernels of the `cpu` backend are compiled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from segquant import QuantizationError
from segquant.kernels.cpu import build


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/nowhere/{name}")
    return tmp_path / "cache"


def test_it_is_said_before_it_is_compiled_and_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, own_cache: Path
) -> None:
    before: list[str] = []

    def compile_now(command: Sequence[str], path: Path) -> None:
        before.extend(record.message for record in caplog.records)
        path.touch()

    monkeypatch.setattr(build, "_compile_now", compile_now)
    with caplog.at_level(logging.INFO):
        made = build.library()
        assert build.library() == made and made.parent == own_cache
    assert before == ["CPU kernels: compiling, once per machine; about half a minute"]
    assert [record.message for record in caplog.records] == [*before, "CPU kernels: compiled in 0 s"]


def test_two_at_once_compile_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    began, waits = threading.Event(), threading.Event()
    compiled: list[Path] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting" in record.getMessage():
                waits.set()

    def compile_now(command: Sequence[str], path: Path) -> None:
        began.set()
        assert waits.wait(20), "the second did not wait"
        compiled.append(path)
        path.touch()

    monkeypatch.setattr(build, "_compile_now", compile_now)
    monkeypatch.setattr(build.log, "handlers", [Heard()])
    found: list[Path] = []
    with caplog.at_level(logging.INFO):
        first = threading.Thread(target=lambda: found.append(build.library()))
        first.start()
        assert began.wait(20)
        found.append(build.library())  # another file of the same lock, as another process has
        first.join()
    assert len(compiled) == 1 and found == compiled * 2
    assert "CPU kernels: another process is compiling them, waiting" in [record.message for record in caplog.records]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGQUANT_CACHE", str(tmp_path / "file"))
    with pytest.raises(QuantizationError, match=r"cannot be compiled into .*file \(.*\); set SEGQUANT_CACHE to a"):
        build.library()


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGQUANT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(build.Path, "home", no_home)
    with pytest.raises(QuantizationError, match="this user has no home; set SEGQUANT_CACHE"):
        build.library()


def test_what_a_killed_compiler_left_goes(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    own_cache.mkdir()
    left, other = own_cache / f"{build.UNFINISHED}abc.so", own_cache / "cpu-of-another-version.so"
    left.touch(), other.touch()
    monkeypatch.setattr(build, "_compile_now", lambda command, path: path.touch())
    made = build.library()
    assert made.is_file() and other.is_file() and not left.exists()


def test_windows_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.sys, "platform", "win32")
    assert build.why_unavailable.__wrapped__() == (
        "is compiled for Linux and macOS, and this is Windows: 'reference' runs there"
    )
