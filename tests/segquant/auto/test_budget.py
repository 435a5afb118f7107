"""Costs of a layer, and the choice within a budget against every combination there is."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn

from segquant import PRECISIONS, InputStats, Segments, presets
from segquant.auto.budget import Candidate, Layer, Limits, choose, layer_bytes, layer_operations, limits_of
from segquant.layers.linear import QuantLinear
from segquant.method.parts import Budget
from segquant.method.spec import Method
from tests.segquant.support import EACH_KIND, EIGHT, SUPER_BLOCKS, tensor


def candidate(error: float, size: int, operations: float = 0, bits: int = 0) -> Candidate:
    return Candidate({"rank": size}, error, size, operations, bits)


def instance(seed: int, layers: int = 4, each: int = 4) -> tuple[list[Layer], Limits]:
    """Layers whose first candidate is cheapest in everything, and limits that allow at least those."""
    draw = random.Random(seed)
    found = []
    for number in range(layers):
        plain = candidate(draw.uniform(0.5, 1), draw.randint(10, 20), draw.randint(10, 20), 40)
        others = [
            candidate(draw.uniform(0.01, 1), plain.bytes + draw.randint(0, 20), plain.operations + draw.randint(0, 20),
                      draw.choice((40, 80)))
            for _ in range(each - 1)
        ]  # fmt: skip
        found.append(Layer(str(number), plain, [plain, *others], 10))
    limits = limits_of(Budget(draw.uniform(1, 2), 4, draw.choice((None, 5.0, 6.5))), found)
    least = sum(layer.plain.operations for layer in found)
    return found, Limits(limits.bytes, least * draw.uniform(1, 2), limits.bits)


def total(chosen: list[Candidate] | tuple[Candidate, ...]) -> float:
    return sum(entry.error**2 for entry in chosen)


def fits(chosen: list[Candidate] | tuple[Candidate, ...], limits: Limits) -> bool:
    sums = [sum(getattr(entry, field) for entry in chosen) for field in ("bytes", "operations", "bits")]
    return sums[0] <= limits.bytes and sums[1] <= limits.operations and (limits.bits is None or sums[2] <= limits.bits)


def best(layers: list[Layer], limits: Limits) -> tuple[Candidate, ...]:
    combinations = itertools.product(*(layer.candidates for layer in layers))
    return min((chosen for chosen in combinations if fits(chosen, limits)), key=total)


def test_choice_keeps_within_the_limits_and_close_to_the_best_of_all_combinations() -> None:
    lost = []
    for seed in range(60):
        layers, limits = instance(seed)
        chosen, exact = choose(layers, limits), best(layers, limits)
        assert fits(chosen, limits)
        assert all(entry in layer.candidates for entry, layer in zip(chosen, layers, strict=True))
        assert total(chosen) <= sum(layer.plain.error**2 for layer in layers)
        lost.append(total(chosen) / total(exact))
        assert lost[-1] > 1 - 1e-9
    # greedy: nearly always the best itself or next to it, on average a few percent off
    assert sum(loss < 1.001 for loss in lost) > 0.5 * len(lost)
    assert sum(lost) / len(lost) < 1.15


def test_no_single_exchange_improves_the_choice() -> None:
    for seed in range(60):
        layers, limits = instance(seed)
        chosen = choose(layers, limits)
        for index, layer in enumerate(layers):
            for other in layer.candidates:
                exchanged = [*chosen[:index], other, *chosen[index + 1 :]]
                assert not fits(exchanged, limits) or total(exchanged) >= total(chosen) - 1e-12


def test_without_pressure_every_layer_takes_its_best() -> None:
    layers, _ = instance(3, layers=40, each=10)
    chosen = choose(layers, Limits(1e9, 1e9))
    assert chosen == [min(layer.candidates, key=lambda c: c.error) for layer in layers]


def test_bytes_go_where_they_help_most() -> None:
    cheap, dear = candidate(0.5, 10), candidate(0.4, 20)
    layers = [Layer("a", cheap, [cheap, dear]), Layer("b", cheap, [cheap, candidate(0.1, 20)])]
    assert choose(layers, Limits(30, 1)) == [cheap, candidate(0.1, 20)]
    assert choose(layers, Limits(20, 1)) == [cheap, cheap]


def test_average_bits_bound_the_mean_over_weights() -> None:
    layers = [
        Layer(name, candidate(error, 1, 0, 4 * weights),
              [candidate(error, 1, 0, 4 * weights), candidate(error / 10, 1, 0, 8 * weights)], weights)
        for name, error, weights in (("large", 0.3, 300), ("small", 0.4, 100), ("tiny", 0.2, 20))
    ]  # fmt: skip
    chosen = choose(layers, Limits(9, 9, 5.2 * 420))
    assert [entry.bits // layer.weights for entry, layer in zip(chosen, layers, strict=True)] == [4, 8, 8]


def test_infeasible_budgets_are_refused_in_a_sentence() -> None:
    layers = [Layer("a", candidate(0.5, 10), [candidate(0.5, 10), candidate(0.1, 9, 5)])]
    with pytest.raises(ValueError, match="no choice keeps within quantizer.budget; allow more bytes"):
        choose(layers, Limits(8, 10))
    with pytest.raises(ValueError, match="no choice"):
        choose(layers, Limits(9, 4))


def layer_of(method: Method, segments: Segments, width: int = 192) -> tuple[nn.Linear, QuantLinear]:
    linear = nn.Linear(width, 48)
    with torch.no_grad():
        linear.weight.copy_(tensor(48, width, seed=1))
        linear.bias.zero_()
    stats = InputStats("layer", width, keep_gram=True)
    for index in range(4):
        stats.update(nn.functional.silu(tensor(8, width, seed=index)), index)
    return linear, QuantLinear.from_float(linear, method, stats, segments)


METHODS = {
    "rtn": {}, "dual": {"dualscale": True, "seglinear": True}, "smooth": {"optimizer": "smooth", "seglinear": True},
    "rotate": {"rotate": True, "optimizer": "smooth"}, "svd": {"optimizer": "svd", "rank": 3, "seglinear": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("precision", [*EIGHT, *EACH_KIND])
def test_bytes_are_those_of_the_layer(precision: str, kind: str) -> None:
    method = Method.of("m", PRECISIONS[precision], alpha=0.5, **METHODS[kind])  # type: ignore[arg-type]
    wide = 4 if precision in SUPER_BLOCKS else 1
    pieces = (64 * wide, 128 * wide)
    for segments in (Segments(), Segments(output=(16, 32), input=pieces, activation="silu")):
        _, module = layer_of(method, segments, 192 * wide)
        assert layer_bytes(module.layout, 4 * 48) == module.weight_bytes()
        stored = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
        assert module.weight_bytes() == stored


def test_operations_are_multiply_accumulates_per_row() -> None:
    cut = Segments(output=(16, 32), activation="silu")
    own = 192 * 48
    for kind, precision, expected in (
        ("rtn", "w8a8", own), ("dual", "w8a8", 2 * own), ("dual", "w4a16", own), ("smooth", "w8a8", own),
        ("rotate", "w8a8", own + 192 * 6),  # 192 = 3 blocks of 64 = 2⁶
    ):  # fmt: skip
        method = Method.of("m", PRECISIONS[precision], alpha=0.5, **METHODS[kind])  # type: ignore[arg-type]
        assert layer_operations(layer_of(method, cut)[1].layout) == expected
    layout = layer_of(presets.segquant_a("w4a8", rank=3, alpha=0.5, dualscale=False), cut)[1].layout
    ranks = layout.transform("low_rank").ranks
    branches = sum(rank * (192 + size) for rank, size in zip(ranks, layout.branches, strict=True))
    assert layer_operations(layout) == own + branches <= own + 3 * (192 + 48)
    # only the input pieces that have two scales are multiplied twice
    half = Segments(input=(64, 128), input_activations=(None, "gelu"))
    layout = layer_of(presets.rtn("w8a8", seglinear=True, dualscale=True), half)[1].layout
    assert layer_operations(layout) == own + 128 * 48


def test_limits_are_multiples_of_plain_rounding() -> None:
    layers = [Layer("a", candidate(0.5, 100, 7), weights=50), Layer("b", candidate(0.5, 40, 7), weights=30)]
    assert limits_of(Budget(1.5, 2.0, 5.0), layers) == Limits(210, 160, 400)
    assert limits_of(Budget(), layers).bits is None
    assert Limits(10, 10, 10).excess((15, 12, 9)) == pytest.approx(0.7) and Limits(10, 10).excess((10, 10, 99)) == 0
