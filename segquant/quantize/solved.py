"""Statistics in groups of layers, and layers solved from them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.keep import Keeper
from segquant.layers.parallel import solve_in_turn
from segquant.method.spec import Method
from segquant.modules.calls import Progress
from segquant.modules.memory import gram_limit
from segquant.modules.swap import swap_
from segquant.modules.tensors import device_of
from segquant.observers.observe import Observed, observe_in_groups
from segquant.observers.stats import InputStats
from segquant.quantize.folds import Folds

log = logging.getLogger(__name__)


class Solved:
    """Quantized layers by the id of the float one, and all names; replaced at once if `streaming`."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        methods: Mapping[str, Method],
        segments: Mapping[str, Segments],
        streaming: bool,
        workers: int,
        progress: Progress | None,
        folds: Folds,
        keep: Keeper | None,
    ) -> None:
        self.model, self.method, self.methods, self.segments = model, method, methods, segments
        self.folds, self.keep = folds, keep
        self.streaming, self.workers, self.progress = streaming, workers, progress
        self.modules: dict[int, nn.Module] = {}
        self.names: list[str] = []

    def add(self, layers: dict[str, nn.Module], group: Observed) -> None:
        """Solve those of `layers` that the group has (the last group: all), and remove them."""
        self.folds.decide({**group.waiting, **group.stats})
        named = {name: layers.pop(name) for name in list(layers) if name in group.stats or group.last}
        if any(entry.needs for entry in self.methods.values()):
            named = called(named, group.stats, self.method)
        done, whole = len(self.names), len(self.names) + len(named) + len(layers)
        self.names += named
        solving = solve_in_turn(
            named, self.folds.methods, group.stats, self.segments, self.workers, self.folds.layers, self.keep
        )
        for count, (old, new) in enumerate(solving, start=done + 1):
            self.modules[id(old)] = new
            if self.streaming and group.last:
                swap_(self.model, self.modules)
                self.modules.clear()
            if self.progress is not None:
                self.progress("quantize", count, whole)


def observed(
    model: nn.Module,
    methods: Mapping[str, Method],
    batches: Iterable[Any],
    stats: Mapping[str, InputStats] | None,
    seed: int,
    memory_limit: int | None,
    progress: Progress | None,
    keep: Keeper | None = None,
) -> Iterator[Observed]:
    """Statistics in groups of layers; one empty group if no method needs them."""
    if stats is not None or not any(entry.needs for entry in methods.values()):
        yield Observed(dict(stats or {}), 0, True)
        return
    yield from observe_in_groups(
        model,
        batches,
        gram=[name for name, entry in methods.items() if "gram" in entry.needs],
        split_gram=any(entry.budget is not None for entry in methods.values()),
        salience=any("salience" in entry.needs for entry in methods.values()),
        seed=seed,
        only=methods,
        progress=progress,
        memory_limit=gram_limit(device_of(model)) if memory_limit is None else memory_limit,
        keep=keep,
    )


def called(layers: dict[str, nn.Module], stats: Mapping[str, InputStats], method: Method) -> dict[str, nn.Module]:
    uncalled = [name for name in layers if name not in stats or stats[name].rows == 0]
    if uncalled and method.targets.on_uncalled == "error":
        more = f" and {len(uncalled) - 3} more" if len(uncalled) > 3 else ""
        raise QuantizationError(
            f"calibration never called {', '.join(uncalled[:3])}{more}; leave them out with `skip`, "
            "or set on_uncalled='skip'"
        )
    if uncalled:
        log.warning("left in floating point, since calibration never called them: %s", ", ".join(uncalled))
    return {name: layer for name, layer in layers.items() if name not in uncalled}
