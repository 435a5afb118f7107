"""Fields of single layers: globs, their order, what cannot be changed, and what is made of them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from segquant import PRECISIONS, Method, QuantizationError, QuantLinear, output_error, presets, quantize_
from segquant.method.parts import Budget
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches

RTN = Method.of("m", PRECISIONS["w8a8"])


def with_overrides(*pairs: tuple[str, dict[str, object]], **fields: object) -> Method:
    return Method.of("m", PRECISIONS["w8a8"], overrides=pairs, **fields)  # type: ignore[arg-type]


def test_every_matching_glob_counts_and_later_ones_win() -> None:
    method = with_overrides(
        ("blocks.*", {"optimizer": "svd", "rank": 3, "alpha": 0.2}),
        ("*.ff.*", {"rank": 5, "precision": "w4a8"}),
        ("blocks.1.ff.0", {"alpha": 0.7}),
    )
    found = method.for_layer("blocks.1.ff.0")
    assert found is not None
    assert (found.value("optimizer"), found.value("rank"), found.value("alpha"), found.scheme) == (
        "svd",
        5,
        0.7,
        PRECISIONS["w4a8"],
    )
    other = method.for_layer("blocks.1.attn")
    assert other is not None and (other.value("rank"), other.value("alpha"), other.scheme) == (
        3,
        0.2,
        PRECISIONS["w8a8"],
    )
    assert method.for_layer("out") is method
    swapped = with_overrides(("*.a", {"rank": 5}), ("x.*", {"rank": 3})).for_layer("x.a")
    assert swapped is not None and swapped.value("rank") == 3


@pytest.mark.parametrize("name, pattern, matches", [
    ("a.b.c", "a.*", True), ("a.b.c", "a.?.c", True), ("a.b.c", "b.c", False), ("a.b.c", "A.b.c", False),
    ("a[1].b", "a[[]1].b", True), ("a1.b", "a[12].b", True), ("a3.b", "a[!12].b", True),
])  # fmt: skip
def test_globs_match_the_whole_name(name: str, pattern: str, matches: bool) -> None:
    found = with_overrides((pattern, {"rotate": True})).for_layer(name)
    assert found is not None and found.value("rotate") is matches


def test_skip_by_list_and_by_override() -> None:
    method = with_overrides(("a.*", {"skip": True}), ("a.b", {"skip": False, "rank": 2}), skip=("z", "y.*"))
    assert method.for_layer("z") is None and method.for_layer("y.1") is None and method.for_layer("a.c") is None
    kept = method.for_layer("a.b")
    assert kept is not None and kept.value("rank") == 2
    # skip is a list for the whole model: an override does not bring a layer back
    assert with_overrides(("z", {"skip": False}), skip=("z",)).for_layer("z") is None


def test_a_layer_may_be_quantized_where_the_model_is_not() -> None:
    method = Method.of("m", presets.none().scheme, overrides=(("up", {"precision": "w8a8"}),))
    found = method.for_layer("up")
    assert method.for_layer("down") is None and found is not None and found.scheme == PRECISIONS["w8a8"]


@pytest.mark.parametrize("values, said", [
    ({"rnak": 4}, r"override 'a\.\*': 'rnak' cannot be changed per layer; nearest: rank"),
    ({"skip": True, "rnak": 4}, "'rnak' cannot be changed"),
    ({"scheme": "w8a8"}, "'scheme' cannot be changed"),
    ({"seed": 3}, "'seed' cannot be changed"), ({"budget": None}, "'budget' cannot be changed"),
    ({"cuts": "random"}, "'cuts' cannot be changed"), ({"overrides": ()}, "'overrides' cannot be changed"),
    ({"name": "x"}, "'name' cannot be changed"), ({"on_uncalled": "skip"}, "'on_uncalled' cannot be changed"),
    ({"precision": "w8a9"}, r"override 'a\.\*': unknown precision 'w8a9'; nearest: w8a8"),
    ({"alpha": 3}, r"override 'a\.\*': alpha must lie in"), ({"rank": "much"}, r"override 'a\.\*'"),
    ("w8a8", "give the fields to change"),
])  # fmt: skip
def test_bad_overrides_are_refused_on_construction(values: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Method.of("m", PRECISIONS["w8a8"], overrides=(("a.*", values),))  # type: ignore[arg-type]


def test_mapping_and_pairs_are_the_same_and_survive_json() -> None:
    pairs = (("b.*", {"rank": 4, "precision": "w4a8"}), ("a", {"skip": True}))
    first = with_overrides(*pairs, skip=("z",))
    assert Method.of("m", PRECISIONS["w8a8"], overrides=dict(pairs), skip=("z",)) == first  # type: ignore[arg-type]
    again = Method.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again == first and [pattern for pattern, _ in again.targets.overrides] == ["b.*", "a"]


@pytest.mark.parametrize("method", [
    Method.of("m", PRECISIONS["w4a4"], rotate=True, ranges="mse", svd="randomized", alpha="search_layer", cuts="wrong"),
    Method.of("m", PRECISIONS["fp8"], budget=Budget(1.5, 2.0, 5.5), bias_correction=True, percentile=99.0),
    presets.auto("w4a8", budget={"average_bits": 6}, overrides={"x": {"rank": 2}}),
])  # fmt: skip
def test_method_round_trips_through_json(method: Method) -> None:
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


@pytest.mark.parametrize("budget, said", [
    ({"bytes": 0.9}, "at least 1"), ({"operations": float("nan")}, "at least 1"), ({"average_bits": 1.9}, r"\[2, 8\]"),
    ({"average_bits": 9}, r"\[2, 8\]"),
])  # fmt: skip
def test_bad_budgets(budget: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        presets.auto(budget=budget)
    with pytest.raises(ValueError, match="no field 'byte'; nearest: bytes"):
        Method.from_dict({**RTN.to_dict(), "budget": {"byte": 1.1}})


def test_an_override_that_matches_nothing_is_an_error_that_leaves_the_model_alone() -> None:
    model = Block()
    with pytest.raises(QuantizationError, match=r"'blocks\.\*' matches none of the model's 4 layers \(ada, up, down"):
        quantize_(model, presets.rtn("w8a8", overrides={"blocks.*": {"rank": 4}}), block_batches(2, seed=1))
    assert isinstance(model.up, nn.Linear)


def test_layers_are_quantized_as_overridden_and_only_those() -> None:
    batches, float_model = block_batches(6, seed=1), Block()
    overrides = {"ada": {"skip": True}, "[ud]*": {"precision": "w8a8_dynamic"}, "down": {"rotate": True}}
    found = quantize_(copy.deepcopy(float_model), presets.rtn("w4a8", overrides=overrides), batches)
    assert isinstance(found.ada, nn.Linear)
    kinds = {name: getattr(found, name).layout for name in ("up", "down", "out")}
    assert {name: layout.weight_spec.dtype for name, layout in kinds.items()} == {
        "up": "int8", "down": "int8", "out": "int4",
    }  # fmt: skip
    assert [layout.transform("rotation") is not None for layout in kinds.values()] == [False, True, False]
    # each layer is the one of a whole model of that kind
    eight = quantize_(copy.deepcopy(float_model), presets.rtn("w8a8_dynamic"), batches)
    four = quantize_(copy.deepcopy(float_model), presets.rtn("w4a8"), batches)
    assert torch.equal(found.up.codes, eight.up.codes) and torch.equal(found.out.codes, four.out.codes)
    held = block_batches(3, seed=2)
    assert output_error(float_model, found, held) < output_error(float_model, four, held)


def test_an_override_can_ask_for_statistics_that_the_rest_does_without() -> None:
    method = presets.rtn("w4a8", overrides={
        "up": {"calibrator": "gptq"}, "down": {"optimizer": "balance"}, "out": {"optimizer": "svd", "iterations": 1},
    })  # fmt: skip
    found = quantize_(Block(), method, block_batches(6, seed=1), BLOCK_SEGMENTS)
    plain = quantize_(Block(), presets.rtn("w4a8"), [])
    assert torch.equal(found.ada.codes, plain.ada.codes) and not torch.equal(found.up.codes, plain.up.codes)
    assert found.down.layout.transform("smoothing") and found.out.layout.transform("low_rank")
    assert not found.up.layout.transform("smoothing")
    assert all(isinstance(getattr(found, name), QuantLinear) for name in BLOCK_SEGMENTS)
