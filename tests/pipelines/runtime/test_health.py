"""A stage in the cache is what was written, or is set aside and computed again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime import health
from segquant_bench.pipelines.runtime.cache import find_finished, run_stage, stage_key


def _write(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images" / "0000.png").write_bytes(b"picture")
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 40)


def _fail(_: Path) -> None:
    raise AssertionError("computed again")


def _stored(cache: Path) -> Path:
    return run_stage("generate", cache, {}, _write).path


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _other_size(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _written_over_in_place(path: Path) -> None:
    """As an editor does; the time of the last write is set back, as `touch -r` can."""
    stat = path.stat()
    _flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


FILES = ("images/0000.png", "weights.safetensors")
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (_flip, "has another content than when it was written"),
    "the same size": (_written_over_in_place, "has another content than when it was written"),
    "longer": (_other_size, "bytes instead of"),
    "empty": (lambda path: path.write_bytes(b""), "has 0 bytes instead of"),
    "gone": (Path.unlink, "is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_noticed_told_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, name: str
) -> None:
    folder = _stored(tmp_path)
    damage, sentence = DAMAGE[kind]
    damage(folder / name)
    assert find_finished("generate", tmp_path, {}) is None
    with caplog.at_level(logging.WARNING):
        again = run_stage("generate", tmp_path, {}, _write)
    assert not again.cached and again.path == folder
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"generate: {name}") and sentence in told and "\n" not in told
    assert told.endswith(f"kept as {folder.name}.damaged1, and computed again")
    assert (folder.parent / f"{folder.name}.damaged1").is_dir()
    assert (folder / "images" / "0000.png").read_bytes() == b"picture"
    assert run_stage("generate", tmp_path, {}, _fail).cached


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not readable JSON"), (b'{"seconds": 1.0', "is not readable JSON"), (b"\xff", "is not readable JSON"),
        (b"[" * 9999, "is not readable JSON"), (b"[]", "has no number of seconds"), (b"{}", "has no number of seconds"),
        (b'{"seconds": "1"}', "of seconds"), (b'{"seconds": NaN}', "of seconds"), (b'{"seconds": -1}', "of seconds"),
        (b'{"seconds": true}', "of seconds"), (b'{"seconds": 1}', "has no number of peak_memory_mb"),
        (b'{"seconds": 1, "peak_memory_mb": 2, "peak_device_memory_mb": []}', "has no number of peak_device_memory_mb"),
        (b'{"seconds": 1, "peak_memory_mb": 2}', "does not say which files it is made of"),
        (b'{"seconds": 1, "peak_memory_mb": 2, "files": {"images/0000.png": 7}}', "instead of None"),
        (b'{"seconds": 1, "peak_memory_mb": 2, "files": {"../../a": {"size": 1}}}', "is missing"),
    ],
)  # fmt: skip
def test_a_broken_record_is_healed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, sentence: str
) -> None:
    folder = _stored(tmp_path)
    (folder / "stage.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert not run_stage("generate", tmp_path, {}, _write).cached
    (told,) = [record.getMessage() for record in caplog.records]
    assert sentence in told and "\n" not in told


@pytest.mark.parametrize(("put", "told"), [(Path.mkdir, "a folder"), (os.mkfifo, "no file")])
def test_what_is_no_file_in_the_place_of_the_record_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, put: Callable[[Path], None], told: str
) -> None:
    """A pipe would be read for ever."""
    folder = _stored(tmp_path)
    (folder / "stage.json").unlink()
    put(folder / "stage.json")
    with caplog.at_level(logging.WARNING):
        assert not run_stage("generate", tmp_path, {}, _write).cached
    assert f"stage.json is {told}" in caplog.text
    assert run_stage("generate", tmp_path, {}, _fail).cached


def test_a_folder_without_a_record_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "stage" / f"generate-{stage_key('generate', {})}"
    folder.mkdir(parents=True)
    (folder / "half").touch()
    assert not run_stage("generate", tmp_path, {}, _write).cached
    assert (tmp_path / "stage" / f"{folder.name}.damaged1" / "half").is_file() and not (folder / "half").exists()
    (folder / "stage.json").unlink()
    assert not run_stage("generate", tmp_path, {}, _write).cached
    assert (tmp_path / "stage" / f"{folder.name}.damaged2").is_dir()


def test_a_file_of_anybody_else_is_damage_and_those_of_file_managers_are_not(tmp_path: Path) -> None:
    folder = _stored(tmp_path)
    for name in (".DS_Store", "images/Thumbs.db", "images/.0000.png.swp"):
        (folder / name).touch()
    assert run_stage("generate", tmp_path, {}, _fail).cached
    (folder / "images" / "0001.png").touch()  # which would be judged with the others
    assert not run_stage("generate", tmp_path, {}, _write).cached


def test_contents_are_read_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = _stored(tmp_path), []
    digest = health.file_digest
    monkeypatch.setattr(health, "file_digest", lambda path: read.append(path.name) or digest(path))
    for _ in range(3):
        assert run_stage("generate", tmp_path, {}, _fail).cached
    assert sorted(read) == ["0000.png", "weights.safetensors"]
    os.utime(folder / "weights.safetensors")
    assert run_stage("generate", tmp_path, {}, _fail).cached
    assert read[2:] == ["weights.safetensors"]


def test_a_record_names_every_file(tmp_path: Path) -> None:
    files = json.loads((_stored(tmp_path) / "stage.json").read_text())["files"]
    assert {name: entry["size"] for name, entry in files.items()} == {
        "images/0000.png": 7, "weights.safetensors": 10240,
    }  # fmt: skip
    assert files["images/0000.png"]["sha256"] == hashlib.sha256(b"picture").hexdigest()


def test_what_cannot_be_set_aside_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _stored(tmp_path)
    _flip(folder / "weights.safetensors")

    def refused(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PipelineError, match="stage generate in .* failed: .*Permission denied"):
        run_stage("generate", tmp_path, {}, _write)


def test_files_and_the_name_are_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def seen(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.partition(".partial")[0])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    folder = _stored(tmp_path)
    assert synced[-2:] == [folder.name, "stage"]
    assert {"0000.png", "weights.safetensors", "stage.json", "images"} <= set(synced)
