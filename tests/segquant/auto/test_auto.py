"""auto on a small model: no worse than the best fixed method, within its budget, repeatable, and a plan to edit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segquant import (
    PRECISIONS,
    InputStats,
    Method,
    QuantizationError,
    QuantLinear,
    QuantScheme,
    QuantSpec,
    layer_errors,
    load_quantized,
    observe,
    presets,
    quantize_,
    read_outcome,
    save_quantized,
)
from segquant.auto.budget import Layer, layer_operations
from segquant.auto.layers import choose_plan, layer_candidates
from segquant.method.parts import Budget
from segquant.method.plan_file import LayerPlan, plan_method, read_plan, write_plan
from segquant.numerics.precisions import scheme_of
from tests.segquant.support import BLOCK_SEGMENTS, OUTCOMES, Block, block_batches, tensor, told

TOLERANCE = {"w8a8_tensor": 1.25, "w4a8": 1.05}
"""auto judges by few held-out rows, so a layer's choice may be second best on fresh ones. Static scales add to that:
whether a range that has seen so few calls clips what later ones bring is beyond what the held-out rows can tell."""
FIXED = ("rtn", "mse", "smoothquant", "gptq", "awq", "quarot", "ptq4dit", "segquant_g", "segquant_r")
RESERVOIR = 400
"""Just too few for all rows, so that one fold is held out: the tests need the choice, not the most careful one."""


def batches() -> list[dict[str, Tensor]]:
    return block_batches(24, seed=1)


@cache
def statistics(reservoir: int = RESERVOIR) -> dict[str, InputStats]:
    return observe(Block(), batches(), gram=True, split_gram=True, salience=True, reservoir=reservoir)


def quantized(method: Method) -> nn.Module:
    return told(Block(), method, [], BLOCK_SEGMENTS, stats=statistics())


@cache
def auto(precision: str) -> nn.Module:
    return quantized(presets.auto(precision))


@cache
def candidates() -> list[Layer]:
    """Of all layers at w4a8; what a budget makes of them costs nothing more."""
    base = presets.auto("w4a8")
    return [
        layer_candidates(getattr(Block(), name), base, statistics()[name], BLOCK_SEGMENTS[name], name=name)
        for name in BLOCK_SEGMENTS
    ]


def chosen(**budget: float) -> tuple[list[LayerPlan], nn.Module]:
    """The plan at w4a8 within a budget, and the model that it makes."""
    base = presets.auto("w4a8", budget=budget)
    plan = choose_plan(candidates(), base)
    return plan, quantized(plan_method(base, plan))


def squares(plan: list[LayerPlan]) -> float:
    return sum((entry.error or 0) ** 2 for entry in plan)


def plan_of(model: nn.Module) -> list[LayerPlan]:
    return list(OUTCOMES[model].choices or ())


def mean_error(model: nn.Module) -> float:
    """Geometric mean over layers of the relative output error on fresh inputs."""
    errors = layer_errors(Block(), model, block_batches(24, seed=2))
    return float(torch.tensor(list(errors.values())).log().mean().exp())


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch) for batch in block_batches(2, seed=3)])


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w4a8"])
def test_never_worse_than_the_best_fixed_method_on_fresh_inputs(precision: str) -> None:
    fixed = {name: mean_error(quantized(getattr(presets, name)(precision))) for name in FIXED}
    # SegQuant's branches and smoothing vectors take more bytes on layers this small than the default budget has
    found = mean_error(chosen(bytes=1.5, operations=3.0)[1] if precision == "w4a8" else auto(precision))
    assert found <= TOLERANCE[precision] * min(fixed.values()), fixed
    assert found < 0.6 * fixed["rtn"]


def test_expected_errors_are_about_those_of_fresh_inputs() -> None:
    model = auto("w4a8")
    fresh = layer_errors(Block(), model, block_batches(24, seed=2))
    for entry in plan_of(model):
        assert entry.error is not None and 0.6 < fresh[entry.layer] / entry.error < 1.7
        assert entry.plain is not None and entry.error <= entry.plain


@pytest.mark.parametrize("budget", [
    {"bytes": 1.0, "operations": 1.0}, {"bytes": 1.02, "operations": 1.1}, {"bytes": 1.3, "operations": 3.0},
])  # fmt: skip
def test_bytes_and_operations_stay_within_the_budget(budget: dict[str, float]) -> None:
    plan, model = chosen(**budget)
    plain = quantized(presets.rtn("w4a8"))
    layers = {entry.layer: (getattr(model, entry.layer), getattr(plain, entry.layer)) for entry in plan}
    stored = sum(new.weight_bytes() for new, _ in layers.values())
    assert stored <= budget["bytes"] * sum(old.weight_bytes() for _, old in layers.values())
    weights = {name: new.in_features * new.out_features for name, (new, _) in layers.items()}
    operations = {name: layer_operations(new.layout) for name, (new, _) in layers.items()}
    assert sum(operations.values()) <= budget["operations"] * sum(weights.values())
    for entry in plan:
        assert entry.bytes == layers[entry.layer][0].weight_bytes()
        assert entry.operations == pytest.approx(operations[entry.layer] / weights[entry.layer], abs=1e-4)


def test_a_larger_budget_is_not_worse_by_its_own_measure() -> None:
    found = [squares(chosen(bytes=size, operations=3.0)[0]) for size in (1.0, 1.05, 1.1, 1.5)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_average_bits_are_spent_where_they_help() -> None:
    names, skip = ("up", "down"), ("ada", "out")
    four, mixed = (
        quantized(presets.auto("w4a8", skip=skip, budget={"bytes": 3.0, "operations": 3.0, "average_bits": bits}))
        for bits in (4.0, 6.0)
    )
    weights = {name: getattr(mixed, name).in_features * getattr(mixed, name).out_features for name in names}
    bits = {name: getattr(mixed, name).layout.weight_spec.bits for name in names}
    assert set(bits.values()) <= {2, 3, 4, 5, 6, 8} and max(bits.values()) > 4
    assert sum(bits[name] * weights[name] for name in bits) <= 6.0 * sum(weights.values())
    assert squares(plan_of(mixed)) < squares(plan_of(four))


@pytest.mark.parametrize("precision", ["w4a8", "w4g32_a16"])
def test_widths_mix_within_any_average(precision: str) -> None:
    """The mean keeps to it, more is not worse by its own measure, and the plan makes the model it says."""
    names, found = ("up", "down"), []
    base = presets.auto(precision, skip=("ada", "out"), budget={"average_bits": 2.5, "bytes": 3.0, "operations": 3.0})
    layers = [
        layer_candidates(getattr(Block(), name), base, statistics()[name], BLOCK_SEGMENTS[name], name=name)
        for name in names
    ]
    weights = {layer.name: layer.weights for layer in layers}
    for average in (2.0, 2.5, 3.5, 5.0, 8.0):
        assert base.budget is not None
        plan = choose_plan(layers, base.changed(budget=replace(base.budget, average_bits=average)))
        method = plan_method(base, plan)
        bits = {name: layer_method.scheme.weight.bits for name in names if (layer_method := method.for_layer(name))}
        assert sum(bits[name] * weights[name] for name in names) <= average * sum(weights.values())
        found.append(squares(plan))
    assert set(bits.values()) == {8} and found == sorted(found, reverse=True) and found[0] > 4 * found[-1]
    model = quantized(base)
    assert {type(entry.choice["precision"]) for entry in plan_of(model) if "precision" in entry.choice} == {str}
    assert torch.isfinite(outputs(model)).all()


def test_auto_is_the_choice_among_the_candidates() -> None:
    plan, model = chosen()
    assert plan_of(auto("w4a8")) == plan and torch.equal(outputs(auto("w4a8")), outputs(model))


def test_same_twice_and_from_batches() -> None:
    method = presets.auto("w8a8", overrides={"[ado]*": {"skip": True}})
    first, again = (
        told(Block(), method, batches(), BLOCK_SEGMENTS, stats=statistics(reservoir)) for reservoir in (512, 512)
    )
    read = told(Block(), method, iter(batches()), BLOCK_SEGMENTS)
    for other in (again, read):
        assert plan_of(other) == plan_of(first) and torch.equal(outputs(other), outputs(first))


def test_plan_file_runs_again_bit_for_bit_and_after_an_edit(tmp_path: Path) -> None:
    base, first = presets.auto("w4a8"), auto("w4a8")
    path = tmp_path / "plan.json"
    write_plan(path, base, plan_of(first))
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]
    method = presets.plan("w4a8", path=path)
    assert method.name == "plan" and method.budget is None and presets.plan(path=str(path)) == method
    assert method == read_plan(path) == plan_method(base, plan_of(first))
    # on statistics without what auto alone needs: the very same model
    stats = observe(Block(), batches(), gram=True, reservoir=RESERVOIR)
    again = quantize_(Block(), method, [], BLOCK_SEGMENTS, stats=stats)
    assert torch.equal(outputs(again), outputs(first))
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in first.state_dict().items())

    content = json.loads(path.read_text())
    assert content["budget"] == {"bytes": 1.1, "operations": 1.5, "average_bits": None, "over": "methods"}
    for entry in content["layers"]:
        if entry["layer"] == "up":
            entry.update(choice={"precision": "w8a8_dynamic", "calibrator": "gptq"}, error=None)
    path.write_text(json.dumps(content))
    edited = quantized(presets.plan("w4a8", path=path))
    assert edited.up.layout.weight_spec.dtype == "int8"
    assert torch.equal(edited.down.codes, first.down.codes) and mean_error(edited) < mean_error(first)


def edited_plan(path: Path, change: object) -> Path:
    write_plan(path, presets.auto("w4a8"), [LayerPlan("up", {"rotate": True}, 0.1, 10, 1.0, 0.2)])
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)) if callable(change) else str(change))
    return path


@pytest.mark.parametrize("change, said", [
    ("{", "is no plan of quantizer=auto"),
    (lambda c: [], "is no plan"),
    (lambda c: {**c, "schema": 9}, "schema 9 instead of 2"),
    (lambda c: {**c, "layers": [{"layer": "up", "chioce": {}}]}, "is no plan.*chioce"),
    (lambda c: {**c, "layers": [{"layer": "up", "choice": {"rotat": True}}]}, "'rotat' cannot be changed.*rotate"),
    (lambda c: {key: value for key, value in c.items() if key != "method"}, "is no plan.*method"),
])  # fmt: skip
def test_broken_plans_are_refused_in_a_sentence(change: object, said: str, tmp_path: Path) -> None:
    path = edited_plan(tmp_path / "plan.json", change)
    with pytest.raises(ValueError, match=said) as caught:
        presets.plan("w4a8", path=path)
    assert str(path) in str(caught.value)


def test_plans_for_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no plan"):
        presets.plan("w4a8", path=tmp_path / "plan.json")
    path = edited_plan(tmp_path / "plan.json", lambda c: c)
    with pytest.raises(ValueError, match="is a plan for another precision than w8a8"):
        presets.plan("w8a8", path=path)
    stranger = plan_method(presets.auto("w4a8"), [LayerPlan("blocks.0.up", {"rotate": True})])
    with pytest.raises(QuantizationError, match=r"'blocks\.0\.up' matches none"):
        quantized(stranger)


def test_layer_names_are_no_globs() -> None:
    method = plan_method(presets.auto("w4a8"), [LayerPlan("a[0].*", {"rotate": True})])
    named, other = method.for_layer("a[0].*"), method.for_layer("a0.b")
    assert named is not None and named.rotation and other is not None and not other.rotation


def test_overrides_pin_fields() -> None:
    overrides = {"up": {"rotate": False, "optimizer": "none"}, "ada": {"skip": True}, "out": {"precision": "w8a8"},
                 "down": {"calibrator": "amax", "ranges": "amax", "bias_correction": False, "alpha": 0.5}}  # fmt: skip
    model = quantized(presets.auto("w4a8", overrides=overrides, budget={"average_bits": 8, "bytes": 4.0}))
    assert isinstance(model.ada, nn.Linear)
    assert not model.up.layout.transform("rotation") and not model.up.layout.transform("smoothing")
    assert model.out.layout.scheme == PRECISIONS["w8a8"]
    plan = {entry.layer: entry.choice for entry in plan_of(model)}
    assert set(plan) == {"up", "down", "out"}
    assert all(not set(choice) & set(overrides[name]) for name, choice in plan.items())
    assert model.up.layout.weight_spec.bits == 8, "what is not pinned stays free"


def test_a_layer_may_be_pinned_to_other_methods() -> None:
    overrides = {"[ao]*": {"skip": True}, "*": {"optimizer": "balance"}}
    model = quantized(presets.auto("w8a8_tensor", overrides=overrides))
    assert model.up.layout.transform("smoothing") and model.down.layout.transform("smoothing")


def test_candidates_start_from_plain_rounding() -> None:
    linear, stats = Block().down, statistics()["down"]
    found = layer_candidates(linear, presets.auto("w8a8"), stats, BLOCK_SEGMENTS["down"], name="down")
    assert found.candidates[0] is found.plain and found.weights == linear.weight.numel()
    assert found.plain.bytes == QuantLinear.from_float(linear, presets.rtn("w8a8"), stats).weight_bytes()
    assert found.plain.operations == linear.weight.numel()
    changes = [candidate.change for candidate in found.candidates]
    for wanted in ({"rotate": True}, {"dualscale": True}, {"optimizer": "smooth"}, {"calibrator": "gptq"}):
        assert any(wanted.items() <= change.items() for change in changes)
    assert min(candidate.error for candidate in found.candidates) < found.plain.error


def test_schemes_of_ones_own_and_mixed_widths() -> None:
    scheme = QuantScheme(QuantSpec("int4", "group", 16), QuantSpec("int8", "token", dynamic=True))
    model = quantized(Method.of("mine", scheme, budget=Budget(3, 3, 8), overrides=(("[ado]*", {"skip": True}),)))
    assert scheme_of(plan_of(model)[0].choice["precision"]).weight.bits == 8  # type: ignore[union-attr]


def test_one_call_is_not_enough_to_judge_by() -> None:
    stats = InputStats("down", 64, keep_gram=True, split_gram=True)
    stats.update(tensor(1, 64), 0)
    with pytest.raises(QuantizationError, match="down: auto judges on rows kept apart.*give more batches"):
        layer_candidates(Block().down, presets.auto("w8a8"), stats, None, name="down")


def test_a_budget_that_pins_exceed_is_refused_and_the_model_left_alone() -> None:
    model = Block()
    overrides = {"[ado]*": {"skip": True}, "*": {"precision": "w8a8"}}
    method = presets.auto("w8a8", budget={"average_bits": 4}, overrides=overrides)
    with pytest.raises(QuantizationError, match="no choice keeps within quantizer.budget"):
        quantize_(model, method, [], BLOCK_SEGMENTS, stats=statistics())
    assert all(isinstance(child, nn.Linear) for child in model.children())


def test_the_plan_is_stored_with_the_model(tmp_path: Path) -> None:
    model = auto("w8a8_tensor")
    save_quantized(copy.deepcopy(model), tmp_path / "model", OUTCOMES[model])
    loaded = load_quantized(tmp_path / "model", Block())
    assert list(read_outcome(tmp_path / "model").choices) == plan_of(model) and torch.equal(
        outputs(loaded), outputs(model)
    )
