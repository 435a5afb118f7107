"""Whatever happens to the cache or in a run's folder, the next run's numbers are the same."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from tests.pipelines.conftest import Command, Tiny


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flip": _flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


def _metrics(folder: Path) -> dict[str, object]:
    return json.loads((folder / "results.json").read_text())["metrics"]


def _cached(folder: Path) -> list[bool]:
    """Whether each stage was found."""
    return [stage["cached"] for stage in json.loads((folder / "results.json").read_text())["stages"].values()]


def _pictures(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "images").iterdir())]


def test_every_damaged_file_is_healed(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    """Two files of every stage, each with one kind of damage, a few at a time."""
    cache = tmp_path / "cache"
    arguments = [*tiny.overrides(cache), "quantizer=segquant_g", "precision=w8a8_tensor"]
    first = command(*arguments)
    assert first.code == 0, first.err
    metrics, pictures = _metrics(first.folder), _pictures(first.folder)
    files = sorted(
        path.relative_to(cache / "stage")
        for path in (cache / "stage").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )
    stages = sorted({path.parts[0] for path in files})
    assert {stage.partition("-")[0] for stage in stages} >= {"reference", "calibrate", "graph", "quantize", "generate"}
    draw = random.Random(0)
    by_stage = [[path for path in files if path.parts[0] == stage] for stage in stages]
    some = [path for own in by_stage for path in draw.sample(own, min(2, len(own)))]
    kinds = list(DAMAGE)
    for turn, path in enumerate(some):
        DAMAGE[kinds[turn % len(kinds)]](cache / "stage" / path)
        if turn % 8 != 7 and path != some[-1]:
            continue
        again = command(*arguments)
        assert again.code == 0, (path, again.err)
        assert (_metrics(again.folder), _pictures(again.folder)) == (metrics, pictures), path
    assert all(_cached(command(*arguments).folder))


def test_a_run_s_folder_is_the_user_s(command: Command, tiny: Tiny, cache: Path) -> None:
    arguments = [*tiny.overrides(cache), "quantizer=rtn", "precision=w8a8_tensor"]
    first = command(*arguments)
    metrics = _metrics(first.folder)
    for path in (first.folder / "images").iterdir():
        _flip(path)
    again = command(*arguments)
    assert again.code == 0 and _metrics(again.folder) == metrics
    assert all(_cached(again.folder))
