"""A data set of the user's own: `dataset._target_` names a function of entries.

An entry is `(prompt, picture, split)` or a mapping: `picture` a path or None, `split` "calibration", "evaluation" or
None. Without splits, `dataset.size` prompts are for evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.data.files import SPLITS, Entry, Source
from segquant_bench.pipelines.data.pictures import Picture
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime import own_code

KEY = f"dataset.{own_code.TARGET}"
FIELDS = ("prompt", "picture", "split")


def read_own(target: str, arguments: Mapping[str, Any]) -> Source:
    """The entries that the user's function returns.

    Raises:
        PipelineError: no such function, it fails, or no entries.
    """
    made = own_code.call(own_code.find_function(target, KEY), arguments, "dataset.arguments", target)
    if isinstance(made, str | Mapping) or not isinstance(made, Iterable):
        raise PipelineError(
            f"{KEY}={target} returned a {type(made).__name__}; return a list of (prompt, picture, split)"
        )
    found = [_entry(row, number, target) for number, row in enumerate(made)]
    if not found:
        raise PipelineError(f"{KEY}={target} returned no entries; return a list of (prompt, picture, split)")
    if all(split is None for _, split in found):
        return Source([entry for entry, _ in found])
    without = next((number for number, (_, split) in enumerate(found) if split is None), None)
    if without is not None:
        raise PipelineError(f"entry {without} of {target} has no split, and others have one; give all of them one")
    by_split = {name: [entry for entry, split in found if split == name] for name in SPLITS}
    if not by_split["evaluation"]:
        raise PipelineError(f"no entry of {target} is for evaluation; give some the split evaluation")
    return Source(by_split["evaluation"], by_split["calibration"])


def _entry(row: Any, number: int, target: str) -> tuple[Entry, str | None]:
    place = f"entry {number} of {target}"
    if isinstance(row, Mapping):
        unknown = sorted(map(str, row.keys() - set(FIELDS)))
        if unknown:
            raise PipelineError(f"{place} has a key {unknown[0]!r}; an entry has {', '.join(FIELDS)}")
        values = tuple(row.get(name) for name in FIELDS)
    elif isinstance(row, tuple | list) and len(row) == len(FIELDS):
        values = tuple(row)
    else:
        raise PipelineError(f"{place} is {one_line(repr(row))[:80]}; an entry is (prompt, picture, split)")
    prompt, picture, split = values
    if not isinstance(prompt, str) or not prompt.strip():
        raise PipelineError(f"{place} has {one_line(repr(prompt))[:80]} as its prompt; give it some text")
    if split is not None and split not in SPLITS:
        raise PipelineError(f"{place} has the split {split!r}; it must be {' or '.join(SPLITS)}, or None")
    return Entry(f"{number:05d}", prompt.strip(), _picture(picture, place)), split


def _picture(value: Any, place: str) -> Picture | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise PipelineError(f"{place} has a {type(value).__name__} as its picture; give the path of a file, or None")
    return Picture(Path(value))
