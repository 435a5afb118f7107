"""Bytes of runs, and which runs are comparable by them."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from itertools import groupby

from segquant_bench.eval.report.runs.groups import DENOISER, group_key, quantized_parts
from segquant_bench.eval.results import RunResult

SHARE = 0.02
"""Runs have comparable bytes if the larger one has at most this share more than the smaller."""


def quantized_bytes(run: RunResult, key: str = "weight_bytes") -> int | None:
    """Of codes and scales of all quantized components; None where one is unknown."""
    parts = quantized_parts(run) or (DENOISER,)
    sizes = [getattr(run, key) if part == DENOISER else run.components.get(part, {}).get(key) for part in parts]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def bytes_ratio(ours: RunResult, theirs: RunResult) -> float | None:
    """Our bytes by theirs; None where they are unknown."""
    sizes = quantized_bytes(ours), quantized_bytes(theirs)
    return sizes[0] / sizes[1] if sizes[0] and sizes[1] else None


def is_comparable(ratio: float | None) -> bool:
    """Whether bytes of this ratio are comparable; unknown ones are not."""
    return ratio is not None and max(ratio, 1.0 / ratio) <= 1.0 + SHARE


def is_no_larger(ratio: float | None) -> bool:
    """Whether the first has comparable bytes or fewer: a lead is not bought with bytes."""
    return ratio is not None and ratio <= 1.0 + SHARE


def by_bytes(runs: Sequence[RunResult]) -> list[RunResult]:
    """Each group by bytes, unknown ones last; equal ones and groups in the order given."""
    found: list[RunResult] = []
    for _, members in groupby(runs, group_key):
        found += sorted(members, key=_known_bytes)
    return found


def _known_bytes(run: RunResult) -> float:
    size = quantized_bytes(run)
    return math.inf if size is None else size


def size_letters(runs: Sequence[RunResult]) -> dict[int, str]:
    """By `id` of the run, letters of its group: runs have comparable bytes if, and only if, they share one.

    Runs that are comparable with none have no letter.
    """
    groups: dict[object, list[RunResult]] = {}
    for run in runs:
        if not run.is_float and quantized_bytes(run):
            groups.setdefault(group_key(run), []).append(run)
    found: dict[int, str] = {id(run): "" for run in runs}
    for members in groups.values():
        for number, window in enumerate(_windows(sorted(members, key=_known_bytes))):
            for run in window:
                found[id(run)] = " ".join(filter(None, (found[id(run)], _letter(number))))
    return found


def _windows(ordered: Sequence[RunResult]) -> list[Sequence[RunResult]]:
    """The largest stretches of runs of which any two are comparable, without runs that stand alone."""
    found: list[Sequence[RunResult]] = []
    end = 0
    for start, first in enumerate(ordered):
        stop = start + 1
        while stop < len(ordered) and is_comparable(bytes_ratio(ordered[stop], first)):
            stop += 1
        if stop > max(end, start + 1):
            found.append(ordered[start:stop])
        end = max(end, stop)
    return found


def _letter(number: int) -> str:
    turn, index = divmod(number, len(string.ascii_lowercase))
    return string.ascii_lowercase[index] + (str(turn + 1) if turn else "")
