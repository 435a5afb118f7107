"""What candidates cost, and which to take within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from segquant.method.parts import FORMATS, Budget
from segquant.numerics.layout import Layout

PRICES = 60
"""Prices of a byte that are tried: each halves the range of their logarithms."""


@dataclass(frozen=True)
class Candidate:
    """One way to quantize one layer.

    Args:
        change: flat settings.
        error: expected ||Y − Ŷ|| / ||Y||.
        operations: multiply-accumulates per input row.
        bits: weight bits times weights.
    """

    change: Mapping[str, Any]
    error: float
    bytes: int
    operations: float
    bits: int


@dataclass(frozen=True)
class Limits:
    """Totals that a choice must not exceed; None: no limit."""

    bytes: float
    operations: float | None
    bits: float | None = None

    def excess(self, totals: tuple[float, float, float]) -> float:
        """Sum of the relative amounts by which (bytes, operations, bits) exceed the limits."""
        limits = (self.bytes, self.operations, self.bits)
        pairs = zip(totals, limits, strict=True)
        return sum(max(0.0, total / limit - 1) for total, limit in pairs if limit is not None)


@dataclass
class Layer:
    """A layer with its candidates; `plain` is rounding to nearest, `gain` as in `output_gains`, None if not known."""

    name: str
    plain: Candidate
    candidates: list[Candidate] = field(default_factory=list)
    weights: int = 0
    gain: float | None = None

    def loss(self, candidate: Candidate) -> float:
        """The candidate's part of the model's squared output error."""
        return ((1.0 if self.gain is None else self.gain) * candidate.error) ** 2


def layer_bytes(layout: Layout, bias_bytes: int) -> int:
    return buffer_bytes(layout.buffers().values()) + bias_bytes


def buffer_bytes(buffers: Iterable[tuple[tuple[int, ...], torch.dtype]]) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in buffers)


def layer_operations(layout: Layout) -> float:
    """Multiply-accumulates per input row."""
    product = layout.in_features * layout.out_features
    twice = sum(size for size, flag in zip(layout.columns, layout.two_products, strict=True) if flag)
    return float(product + twice * layout.out_features) + sum(
        transform.operations(layout.place()) for transform in layout.transforms
    )


def limits_of(budget: Budget, layers: Sequence[Layer]) -> Limits:
    bits = None
    if budget.average_bits is not None:
        bits = budget.average_bits * sum(layer.weights for layer in layers)
    return Limits(
        budget.bytes * sum(layer.plain.bytes for layer in layers),
        None if budget.over == FORMATS else budget.operations * sum(layer.weights for layer in layers),
        bits,
    )


def choose(layers: Sequence[Layer], limits: Limits) -> list[Candidate]:
    """One candidate per layer: least Σ (gain · error)² within the limits, by a greedy heuristic.

    Raises:
        ValueError: the limits are exceeded and no exchange brings the totals nearer.
    """
    chosen = _by_price(layers, limits)
    while (excess := limits.excess(_totals(chosen))) > 0:
        move = _cheapest_exchange(layers, chosen, limits, excess)
        if move is None:
            raise ValueError("no choice keeps within quantizer.budget; allow more bytes, operations or average bits")
        chosen[move[0]] = move[1]
    _refill(layers, chosen, limits)
    return chosen


def compete(layers: Sequence[Layer], limits: Limits) -> bool:
    """Whether some layer cannot have its best candidate: only then does it matter how layers weigh."""
    return limits.excess(_totals(_at(layers, 0.0))) > 0


def _at(layers: Sequence[Layer], price: float) -> list[Candidate]:
    """Every layer's least loss + price · bytes."""
    return [min(layer.candidates, key=lambda c: (layer.loss(c) + price * c.bytes, c.bytes)) for layer in layers]


def _by_price(layers: Sequence[Layer], limits: Limits) -> list[Candidate]:
    """Every layer's least loss + price · bytes, at the lowest price that keeps the bytes within their limit.

    Where bytes alone are limited this is within one layer's candidate of the best there is; the rest is exchanged.
    """

    def fits(chosen: list[Candidate]) -> bool:
        return sum(candidate.bytes for candidate in chosen) <= limits.bytes

    chosen = _at(layers, 0.0)
    if fits(chosen) or limits.operations is not None or limits.bits is not None:
        return chosen
    high = sum(max(map(layer.loss, layer.candidates)) for layer in layers)  # a byte is never worth more
    low = high * 1e-18
    for _ in range(PRICES):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(_at(layers, middle)) else (middle, high)
    return _at(layers, high)


def _totals(chosen: Sequence[Candidate]) -> tuple[float, float, float]:
    return (
        sum(c.bytes for c in chosen),
        sum(c.operations for c in chosen),
        sum(c.bits for c in chosen),
    )


def _swap(totals: tuple[float, float, float], old: Candidate, new: Candidate) -> tuple[float, float, float]:
    return (
        totals[0] - old.bytes + new.bytes,
        totals[1] - old.operations + new.operations,
        totals[2] - old.bits + new.bits,
    )


def _cheapest_exchange(
    layers: Sequence[Layer], chosen: Sequence[Candidate], limits: Limits, excess: float
) -> tuple[int, Candidate] | None:
    totals, best, least = _totals(chosen), None, float("inf")
    for index, layer in enumerate(layers):
        own = chosen[index]
        for candidate in layer.candidates:
            if candidate.bytes >= own.bytes and candidate.operations >= own.operations and candidate.bits >= own.bits:
                continue  # no relief, as most
            relief = excess - limits.excess(_swap(totals, own, candidate))
            if relief <= 0:
                continue
            price = (layer.loss(candidate) - layer.loss(own)) / relief
            if price < least:
                best, least = (index, candidate), price
    return best


def _refill(layers: Sequence[Layer], chosen: list[Candidate], limits: Limits) -> None:
    while True:
        totals, best, gain = _totals(chosen), None, 0.0
        for index, layer in enumerate(layers):
            for candidate in layer.candidates:
                found = layer.loss(chosen[index]) - layer.loss(candidate)
                if found > gain and limits.excess(_swap(totals, chosen[index], candidate)) <= 0:
                    best, gain = (index, candidate), found
        if best is None:
            return
        chosen[best[0]] = best[1]
