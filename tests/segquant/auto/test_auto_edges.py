"""auto where it meets other options: control cuts, readings of the data, odd sizes, pinned fields."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from segquant import PRECISIONS, InputStats, Method, Segments, presets, quantize_
from segquant.auto.candidates import changed, other_precisions, strong
from segquant.auto.layers import layer_candidates
from segquant.graph.control_cuts import wrong_cuts
from segquant.method.parts import Budget
from segquant.optimizers import search
from tests.segquant.support import BLOCK_SEGMENTS, OUTCOMES, Block, block_batches, tensor, told

ADA = Segments(output=(8, 4))


def statistics(width: int) -> InputStats:
    stats = InputStats("0", width, keep_gram=True, split_gram=True)
    for index in range(8):
        stats.update(tensor(3, width, seed=index), index % 4)
    return stats


def test_controls_move_the_graphs_cuts_once() -> None:
    batches = [tensor(4, 16, seed=seed) for seed in range(6)]
    method = presets.auto("w8a8_tensor", cuts="wrong")
    model = told(nn.Sequential(nn.Linear(16, 12)), method, batches, {"0": ADA})
    assert OUTCOMES[model].segments["0"].output == wrong_cuts(ADA).output == (4, 4, 4)
    assert OUTCOMES[model].passes == 1


@pytest.mark.parametrize("in_features, found", [(64, ["w4a8"]), (48, [])])
def test_only_precisions_that_fit_the_width_are_mixed_in(in_features: int, found: list[str]) -> None:
    assert other_precisions(PRECISIONS["w8a8"], in_features) == found
    assert other_precisions(PRECISIONS["w4a8_channel"], in_features) == ["w8a8_dynamic"]
    assert other_precisions(PRECISIONS["w4a16"], in_features) == []
    base = presets.auto("w8a8", budget={"average_bits": 8})
    layer = layer_candidates(nn.Linear(in_features, 8), base, statistics(in_features), None, name="0")
    widths = {f"w{bits}channel_a8tensor" for bits in (2, 3, 4, 5, 6)}
    names = {candidate.change.get("precision", "w8a8") for candidate in layer.candidates}
    assert names == {"w8a8", *found, *widths}


def test_a_layer_with_one_output_takes_no_rank_beyond_it() -> None:
    base = Method.of("mine", PRECISIONS["w4a8_channel"], budget=Budget(3, 3))
    pinned = frozenset({"precision"})  # else a format of its own takes the branch's place
    layer = layer_candidates(nn.Linear(32, 1), base, statistics(32), None, name="0", fixed=pinned)
    assert {candidate.change["rank"] for candidate in layer.candidates if "rank" in candidate.change} == {1}


def test_eight_bits_have_no_format_to_gain_by() -> None:
    layer = layer_candidates(nn.Linear(64, 8), presets.auto("w8a8"), statistics(64), None, name="0")
    assert not any("precision" in candidate.change for candidate in layer.candidates)


def test_candidates_that_differ_in_pinned_fields_alone_are_one() -> None:
    base = presets.auto("w8a8", overrides={"0": {"optimizer": "none", "rotate": False}})
    pins = frozenset({"optimizer", "rotate"})
    layer = layer_candidates(nn.Linear(32, 8), base, statistics(32), None, name="0", fixed=pins)
    changes = [candidate.change for candidate in layer.candidates[1:]]  # plain comes first, and once more
    assert all(change not in changes[:index] for index, change in enumerate(changes))


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w8a8_dynamic", "w4a8_channel", "w4a4"])
def test_segquant_r_without_its_branch_is_among_the_candidates(precision: str) -> None:
    names, batches, width = ["ada", "up", "down", "out"], block_batches(6, seed=1, width=64), 64
    segments = {name: BLOCK_SEGMENTS[name] for name in names}
    segments["ada"] = replace(segments["ada"], output=(width,) * 3)
    segments["out"] = Segments(input=(width, width))
    fixed = quantize_(Block(width), presets.segquant_r(precision).changed(optimizer="smooth"), batches, segments)
    base = presets.auto(precision)
    for name in names:
        method = changed(base, strong(base, segments[name]))
        model = Block(width)
        skip = tuple(other for other in names if other != name)
        quantize_(model, method.changed(skip=skip), batches, segments)
        found, expected = getattr(model, name).state_dict(), getattr(fixed, name).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_one_search_for_alpha_serves_all_formats_ranges_and_calibrators() -> None:
    layer, base = nn.Linear(32, 16), presets.auto("w4a8_channel")
    with patch.object(search, "alpha_errors", wraps=search.alpha_errors) as searched:
        found = layer_candidates(layer, base, statistics(32), None, name="0")
    kept = {(c.change["optimizer"], c.change["rotate"]) for c in found.candidates if c.change["optimizer"] != "none"}
    assert kept == {("smooth", False), ("smooth", True)}
    solved = [c.change for c in found.candidates if c.change["calibrator"] == "gptq"]
    assert {change["alpha"] for change in solved if change["optimizer"] == "smooth"} == {search.SEARCH}
    assert len({c.change.get("precision") for c in found.candidates}) > 4
    assert searched.call_count == 1  # by the first of the four folds that are kept apart; first rounds search none
