"""A collector amid a reading, as tensors and JSON."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from segquant.keep import Keeper, Pace
from segquant.observers.collector import Collector
from segquant.observers.stats import FoldStats, InputStats

log = logging.getLogger(__name__)

_COUNTS = ("rows", "calls")


class Snapshots:
    """Of one reading of the data, kept under a name of its own.

    Args:
        names: linears that are observed.
        device: where the model runs; what was kept of another device of that kind goes there.
    """

    def __init__(self, keep: Keeper | None, passes: int, names: Collection[str], device: torch.device) -> None:
        self._keep, self._name, self._names, self._device = keep, _name(passes), tuple(names), device
        self._pace = Pace()

    def restore(self, collector: Collector) -> int:
        """Batches that a run before had read, whose state the collector then has; 0 without."""
        piece = None if self._keep is None else self._keep.get(self._name)
        if piece is None or not set(self._names) <= set(piece.about["stats"]):
            return 0
        away = piece.about["away"]
        tensors = {key: value.to(self._device) if key in away else value for key, value in piece.tensors.items()}
        restore(collector, tensors, piece.about, self._names)
        done: int = piece.about["done"]
        log.info("going on behind %d batches of calibration inputs that a run before had read", done)
        return done

    def take(self, collector: Collector, done: int, batches: Any) -> None:
        """After batch number `done`: now, if it is the last or the last snapshot was long ago."""
        last = isinstance(batches, Sized) and done == len(batches)
        if self._keep is None or not (last or self._pace.is_due()):
            return
        began = time.monotonic()
        tensors, about = state(collector, self._names)
        away = [key for key, value in tensors.items() if value.device.type != "cpu"]
        self._keep.put(self._name, tensors, {**about, "done": done, "away": away})
        self._pace.took(time.monotonic() - began)


def has_snapshots(keep: Keeper) -> bool:
    """Whether a reading may go on behind some batches, which the model then is not called on."""
    return keep.has(_name(1))


def drop_snapshots(keep: Keeper, passes: int) -> None:
    """Of so many readings whose layers are all solved: Gram matrices are large."""
    for number in range(1, passes + 1):
        keep.drop(_name(number))


def _name(passes: int) -> str:
    return f"reading {passes}"


def state(collector: Collector, names: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that `restore` needs to go on with these linears."""
    tensors, grams = collector.grams.state()
    tensors = {f"gram/{key}": value for key, value in tensors.items()}
    stats, peaks = {}, {}
    for name in names:
        found, stats[name] = _stats_state(collector.raw(name))
        tensors |= {f"stats/{name}/{key}": value for key, value in found.items()}
        if name in collector.peaks:
            found, peaks[name] = collector.peaks[name].state()
            tensors |= {f"peaks/{name}/{key}": value for key, value in found.items()}
    return tensors, {"grams": grams, "stats": stats, "peaks": peaks}


def restore(
    collector: Collector, tensors: Mapping[str, Tensor], about: Mapping[str, Any], names: Collection[str]
) -> None:
    """Inverse of `state`, for some of its linears."""
    collector.grams.restore(_under("gram/", tensors), about["grams"], names)
    for name in names:
        _restore_stats(collector.raw(name), _under(f"stats/{name}/", tensors), about["stats"][name])
        if name in collector.peaks:
            collector.peaks[name].restore(_under(f"peaks/{name}/", tensors), about["peaks"][name])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _stats_state(stats: InputStats) -> tuple[dict[str, Tensor], list[Any]]:
    tensors, counts = {"generator": stats.generator.get_state()}, list[Any]()
    for index, fold in enumerate(stats.folds):
        counts.append(None if fold is None else [getattr(fold, key) for key in _COUNTS])
        if fold is not None:
            tensors |= {f"{index}/{key}": value for key, value in vars(fold).items() if key not in _COUNTS}
    return tensors, counts


def _restore_stats(stats: InputStats, tensors: Mapping[str, Tensor], counts: list[Any]) -> None:
    stats.generator.set_state(tensors["generator"])
    keys = [field.name for field in dataclasses.fields(FoldStats) if field.name not in _COUNTS]
    for index, count in enumerate(counts):
        if count is not None:
            found: dict[str, Any] = {key: tensors[f"{index}/{key}"] for key in keys}
            stats.folds[index] = FoldStats(**found, **dict(zip(_COUNTS, count, strict=True)))
