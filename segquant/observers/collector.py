"""What all layers' hooks report to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segquant.errors import QuantizationError
from segquant.modules.layers import as_linear, input_rows
from segquant.observers.gram import Grams
from segquant.observers.salience import TemporalSalience
from segquant.observers.stats import InputStats


class Collector:
    """Statistics of some linears.

    Args:
        widths: input features by linear.
        split_gram: sum fold 0's Gram matrices apart.
        reservoir: rows kept, drawn by `seed`.

    Attributes:
        peaks: by linear, of those with salience.
        grams: of this reading.
    """

    def __init__(self, widths: Mapping[str, int], split_gram: bool, reservoir: int, seed: int) -> None:
        self.widths, self.split_gram = widths, split_gram
        self._stats = {name: InputStats(name, width, reservoir, seed) for name, width in widths.items()}
        self.peaks: dict[str, TemporalSalience] = {}
        self.grams = Grams(widths)
        self._wanted: set[str] = set()
        self._passes, self._again = 0, True
        self._fold: int | None = None

    @property
    def deferred(self) -> set[str]:
        """Linears whose Gram matrix found no room."""
        return self.grams.deferred

    def add_salience(self, layers: Mapping[str, nn.Module]) -> None:
        """Average channel peaks over time, against the weights' salience."""
        for name, layer in layers.items():
            self.peaks[name] = TemporalSalience(as_linear(layer).weight.detach().abs().amax(0).float())

    def check_limit(self, names: Collection[str], limit: int | None) -> None:
        grams = Grams(self.widths, limit, self.split_gram)
        for name in names:
            size = grams.matrix_bytes(self.widths[name])
            if limit is not None and size > limit:
                raise QuantizationError(
                    f"{name}: the Gram matrix of its {self.widths[name]} inputs takes {size:,} bytes, and "
                    f"memory_limit is {limit:,}; raise it or take a method without Gram matrices for this layer"
                )

    def begin_pass(self, names: Collection[str], limit: int | None, again: bool) -> None:
        """Start a reading, with Gram matrices of `names`; `again`: another is possible."""
        self._passes, self._again, self._wanted = self._passes + 1, again, set(names)
        self.grams = Grams(self.widths, limit, self.split_gram)

    def begin_call(self, fold: int | None) -> None:
        """Before a forward pass; its rows go to `fold`, or over all if None."""
        self.check_again()
        self._fold = fold
        self.grams.begin_call()

    def check_again(self) -> None:
        """Raise QuantizationError if another reading is needed and impossible."""
        if self.deferred and not self._again:
            raise QuantizationError(
                f"the Gram matrices of {len(self.deferred)} layers do not fit memory_limit beside the others, so the "
                "calibration data has to be read again, but `batches` is an iterator, which can be read once; give a "
                "list (or another iterable), or raise memory_limit"
            )

    def update(self, name: str, x: Tensor) -> None:
        if x.device.type == "meta":
            raise QuantizationError(
                f"{name}: its inputs have no values (they are on meta); load the model's weights, and give batches "
                "that have values"
            )
        if not x.numel():
            return
        if self._passes == 1:
            self._stats[name].update(x, self._fold)
            if name in self.peaks:
                self.peaks[name].update(_item_peaks(x))
        if name in self._wanted:
            self.grams.update(name, x, self._fold)

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """A forward pre-hook (with kwargs) for the layer `name`."""

        def take_in(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.update(name, input_rows(layer, args[0] if args else kwargs["input"]))

        return take_in

    def raw(self, name: str) -> InputStats:
        """A linear's statistics as they are summed."""
        return self._stats[name]

    def so_far(self, name: str) -> InputStats:
        """A linear's statistics without its Gram matrix; not handed over."""
        stats = self._stats[name]
        peaks = self.peaks.get(name)
        return stats if peaks is None or not peaks.items else replace(stats, salience=peaks.value)

    def finish(self, name: str) -> InputStats:
        """A linear's statistics, handed over.

        Raises:
            QuantizationError: NaN or inf; another reading had other data.
        """
        stats = self._stats.pop(name)
        stats.check_finite()
        if name in self.peaks and self.peaks[name].items:
            stats.salience = self.peaks.pop(name).value
        if name in self._wanted:
            stats.gram_sum, stats.gram_first = self.grams.sums(name)
            if self._passes > 1:
                _check_same_data(stats)
        return stats


def _check_same_data(stats: InputStats) -> None:
    """diag(XᵀX) must be the sums of squares, which may come from another reading."""
    squares = stats.mean_square.double() * stats.rows
    if stats.gram_sum is None or not torch.allclose(stats.gram_sum.diagonal(), squares, rtol=1e-2):
        raise QuantizationError(
            f"{stats.name}: `batches` gave other inputs when it was read again; give the same ones each time (a list), "
            "or raise memory_limit so that one reading suffices"
        )


def _item_peaks(x: Tensor) -> Tensor:
    items = x.shape[0] if x.dim() > 1 else 1
    return x.abs().reshape(items, -1, x.shape[-1]).amax(1).float()
