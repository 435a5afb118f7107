"""What is fuzzed: a folder of undamaged files, how it is read, and which refusals are sentences."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.guard import Forbidden, guarded
from tests.fuzz.mutations import OUTSIDE, mutated

SECRETS = ("00000.png", "00001.png", "per_image.json", "features.safetensors", "config.json", "model_index.json")
"""Names that are looked for where a path leads to the folder outside."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        make: writes undamaged files into the folder that it is given.
        read: reads them; anything that it returns is right.
        refusals: the errors that a command turns into one sentence, exactly these classes.
        damaged: patterns of the files that are damaged.
        settle: makes what belongs to a damaged file fit again, such as its size in a manifest.
        fast: readings of the fast tests, about a second.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]
    damaged: tuple[str, ...] = ("*",)
    settle: Callable[[Path], object] = lambda folder: None
    fast: int = 30


@dataclass
class Counts:
    """How readings of damaged files ended."""

    read: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)


def fuzz(target: Target, place: Path, seeds: Iterable[int]) -> Counts:
    """Damage one file after another in a folder below `place`, with one seed each, and read."""
    whole, folder, outside = place / "whole", place / "folder", place / OUTSIDE
    whole.mkdir()
    target.make(whole)
    outside.mkdir()
    for name in ("secret.json", "secret.safetensors", "secret.png", "secret.pt", *SECRETS):
        (outside / name).write_bytes(b"{}")
    target.read(whole)  # undamaged, it is read; what is imported or cached first is so now
    files = sorted({path for each in target.damaged for path in whole.rglob(each) if path.is_file()})
    counts = Counts()
    for seed in seeds:
        draw = random.Random(f"{target.name} {seed}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        path = folder / draw.choice(files).relative_to(whole)
        path.write_bytes(mutated(draw, path, path.read_bytes()))
        target.settle(folder)
        _read(target, folder, outside, f"{target.name} {seed} ({path.relative_to(folder)})", counts)
    return counts


def _read(target: Target, folder: Path, outside: Path, what: str, counts: Counts) -> None:
    told: list[str] = []
    try:
        with guarded(outside) as told:
            target.read(folder)
        counts.read += 1
    except (Exception, Forbidden) as error:
        if type(error) not in target.refusals or "\n" in str(error):
            counts.faults.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
        else:
            counts.refused += 1
    if told:
        counts.faults.append(f"{what}: {told[0]}")
