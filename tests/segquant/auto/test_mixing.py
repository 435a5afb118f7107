"""Mixed formats: what may mix, the choice against all combinations, and what comes of it on a small model."""

from __future__ import annotations

import copy
import random
from functools import cache

import pytest
import torch
from torch import nn

from segquant import PRECISIONS, InputStats, QuantizationError, layer_errors, load_quantized, presets, save_quantized
from segquant.auto.budget import Candidate, Layer, Limits, choose
from segquant.auto.layers import layer_candidates
from segquant.auto.mixing import formats_of, near
from segquant.layers.linear import QuantLinear
from segquant.method.plan_file import LayerPlan, plan_method
from segquant.numerics.precisions import precision_name, scheme_of
from tests.segquant.auto.test_auto import outputs, plan_of, quantized, statistics
from tests.segquant.support import BLOCK_SEGMENTS, OUTCOMES, Block, block_batches, tensor, told

FORMATS = {"over": "formats", "bytes": 1.0}


@cache
def mixed(name: str, precision: str) -> nn.Module:
    method = getattr(presets, name)(precision, budget=FORMATS)
    return told(Block(), method, block_batches(4, seed=1), BLOCK_SEGMENTS, stats=statistics())


def output_error(model: nn.Module) -> float:
    """Relative, on fresh inputs."""
    with torch.no_grad():
        pairs = [(model(**batch), Block()(**batch)) for batch in block_batches(8, seed=7)]
    wrong = sum(float((found - exact).square().sum()) for found, exact in pairs)
    return (wrong / sum(float(exact.square().sum()) for _, exact in pairs)) ** 0.5


@pytest.mark.parametrize("precision, width, names", [
    ("w4a8_channel", 96, ["w2channel_a8token", "w3channel_a8token", "w4a8_channel", "w5channel_a8token",
                          "w6channel_a8token", "w8a8_dynamic"]),
    ("w8a8_tensor", 96, [f"w{bits}tensor_a8tensor" for bits in (2, 3, 4, 5, 6)] + ["w8a8_tensor"]),
    ("nvfp4", 32, [f"w{dtype}g{group}-e4m3_afp4e2m1g16-e4m3" for group in (16, 32) for dtype in
                   ("fp4e2m1", "fp6e2m3", "fp8")]),
    ("w4a16_nf4", 96, ["wnf4g32_a16", "w4a16_nf4"]),
    ("q4_k", 512, ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"]),
    ("q8_0", 96, ["q8_0"]),
    ("w4a8", 40, ["w4a8"]),
])  # fmt: skip
def test_what_may_mix(precision: str, width: int, names: list[str]) -> None:
    found = [precision_name(scheme) for scheme in formats_of(scheme_of(precision), width)]
    assert len(found) == len(set(found)) and found[0] == precision
    assert set(found) == {precision_name(name) for name in names}


def test_layers_have_two_bits_less_than_the_base_at_most_unless_their_average_is_lower() -> None:
    """At w6a6 some were given 2 bits by errors and gains measured at 6, and pictures lost 3 dB."""
    base = PRECISIONS["w6a6"]
    assert {scheme.weight.bits for scheme in near(formats_of(base, 96), base)} == {4, 5, 6, 8}  # type: ignore[union-attr]
    found = [
        layer_candidates(Block().down, presets.gptq_mse("w6a6", budget={"over": "formats", **budget}),
                         statistics()["down"], BLOCK_SEGMENTS["down"], name="down").candidates
        for budget in ({}, {"average_bits": 3})
    ]  # fmt: skip
    widths = [{scheme_of(c.change.get("precision", "w6a6")).weight.bits for c in each} for each in found]  # type: ignore[union-attr]
    assert widths == [{4, 5, 6, 8}, {2, 3, 4, 5, 6, 8}]


def test_groups_mix_with_widths() -> None:
    found = formats_of(PRECISIONS["w4a8"], 192)
    pairs = {(scheme.weight.bits, scheme.weight.group_size) for scheme in found}  # type: ignore[union-attr]
    assert pairs == {(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)}
    assert {scheme.input for scheme in found} == {PRECISIONS["w4a8"].input}


@pytest.mark.parametrize("precision", ["w4a8", "w4a8_asym", "w4a8_channel", "w8a8", "nvfp4", "mxfp4", "w4a16_nf4"])
def test_narrow_scales_mix_where_integers_have_groups(precision: str) -> None:
    own = PRECISIONS[precision].weight
    found = [each.weight for each in formats_of(PRECISIONS[precision], 192)]
    assert own is not None
    mixes = own.granularity == "group" and own.grid.kind in ("int", "uint")
    assert {weight.scale_dtype for weight in found if weight} == {own.scale_dtype} | ({"e4m3"} if mixes else set())
    assert {weight.grid.kind for weight in found if weight} == {own.grid.kind}


def exact(layers: list[Layer], size: int) -> float:
    """Least Σ loss within `size` bytes, over all combinations (by every number of bytes in turn)."""
    best = [0.0] * (size + 1)
    for layer in layers:
        best = [
            min((best[room - c.bytes] + layer.loss(c) for c in layer.candidates if c.bytes <= room), default=1e9)
            for room in range(size + 1)
        ]
    return best[size]


def test_the_choice_by_price_is_next_to_the_best_of_all_combinations() -> None:
    lost = []
    for seed in range(8):
        draw = random.Random(seed)
        layers = []
        for number in range(40):
            weights, noise = draw.randint(1, 9), draw.uniform(0.5, 2)
            each = [
                Candidate({"rank": bits}, noise * 2.0**-bits * draw.uniform(0.8, 1.2), weights * bits, 0, 0)
                for bits in (2, 3, 4, 5, 6, 8)
            ]
            layers.append(Layer(str(number), each[2], each, weights, draw.uniform(0.1, 3)))
        size = sum(layer.plain.bytes for layer in layers)
        chosen = choose(layers, Limits(size, None))
        assert sum(entry.bytes for entry in chosen) <= size
        found = sum(layer.loss(entry) for layer, entry in zip(layers, chosen, strict=True))
        lost.append(found / exact(layers, size))
    assert min(lost) > 1 - 1e-9 and max(lost) < 1.03


@pytest.mark.parametrize("name, precision", [("gptq_mse", "w4a8"), ("segquant_g", "w4a8"), ("quarot", "w4a8_channel")])
def test_no_more_bytes_than_rounding_has(name: str, precision: str) -> None:
    plain, model = quantized(presets.rtn(precision)), mixed(name, precision)
    sizes = [sum(layer.weight_bytes() for layer in each.children()) for each in (plain, model)]  # type: ignore[operator]
    assert sizes[1] <= sizes[0] and sizes[1] == sum(entry.bytes or 0 for entry in plan_of(model))
    # one format for all was to be had
    assert squares(plan_of(model)) <= sum((entry.gain or 0) ** 2 * (entry.plain or 0) ** 2 for entry in plan_of(model))


def squares(plan: list[LayerPlan]) -> float:
    return sum((entry.gain or 0) ** 2 * (entry.error or 0) ** 2 for entry in plan)


def test_bytes_buy_accuracy() -> None:
    found = [
        output_error(told(Block(), presets.gptq_mse("w4a8", budget={"over": "formats", "bytes": size}),
                          block_batches(4, seed=1), BLOCK_SEGMENTS, stats=statistics()))
        for size in (1.0, 1.3, 1.6)
    ]  # fmt: skip
    assert found[0] > 1.15 * found[1] > 1.3 * found[2]


def test_a_branch_goes_where_its_bytes_do_more_as_codes() -> None:
    found = layer_candidates(
        Block().down,
        presets.segquant_g("w4a8", budget=FORMATS),
        statistics()["down"],
        BLOCK_SEGMENTS["down"],
        name="down",
    ).candidates
    kinds = {
        (candidate.change.get("optimizer", "svd"), candidate.change.get("precision", "w4a8")) for candidate in found
    }
    assert len(kinds) == len(found) == 2 * len(formats_of(PRECISIONS["w4a8"], 64))
    assert min(c.bytes for c in found if "optimizer" in c.change) < min(c.bytes for c in found if not c.change)


def test_expected_errors_are_those_of_the_layers() -> None:
    model = mixed("gptq_mse", "w4a8")
    fresh = layer_errors(Block(), model, block_batches(24, seed=2))
    for entry in plan_of(model):
        assert entry.error is not None and 0.6 < fresh[entry.layer] / entry.error < 1.7


@pytest.mark.parametrize("layer", ["down", "up"])
def test_expected_errors_at_other_formats_are_near_the_solved_ones(layer: str) -> None:
    linear, stats, cuts = getattr(Block(), layer), statistics()[layer], BLOCK_SEGMENTS[layer]
    pinned = frozenset({"precision"})
    ratios = []
    for candidate in layer_candidates(linear, presets.gptq_mixed("w4a8"), stats, cuts, name=layer).candidates:
        alone = presets.gptq_mixed(candidate.change.get("precision", "w4a8"))
        (solved,) = layer_candidates(linear, alone, stats, cuts, name=layer, fixed=pinned).candidates
        ratios.append(candidate.error / solved.error)
    assert ratios[0] == 1.0 and min(ratios) > 0.7 and max(ratios) < 1.3


@pytest.mark.parametrize("precision", ["w4a8", "w4a8_asym", "nvfp4"])
def test_expected_bytes_at_other_formats_are_the_solved_ones(precision: str) -> None:
    """Zero points take bits by width and group: no sum of what each of them costs."""
    linear, stats, cuts = Block().down, statistics()["down"], BLOCK_SEGMENTS["down"]
    found = layer_candidates(linear, presets.gptq_mixed(precision), stats, cuts, name="down").candidates
    for candidate in found:
        rounded = presets.rtn(candidate.change.get("precision", precision), seglinear=False)
        assert candidate.bytes == QuantLinear.from_float(linear, rounded, stats, cuts, name="down").weight_bytes()
    assert len(found) > 5


def test_the_plan_of_a_mix_runs_again_bit_for_bit() -> None:
    model = mixed("gptq_mse", "w4a8")
    again = quantized(plan_method(presets.gptq_mse("w4a8"), plan_of(model)))
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_saved_and_loaded(tmp_path: object) -> None:
    model = mixed("segquant_g", "w4a8")
    save_quantized(copy.deepcopy(model), f"{tmp_path}/model", OUTCOMES[model])
    assert torch.equal(outputs(load_quantized(f"{tmp_path}/model", Block())), outputs(model))


def test_gptq_mixed_is_gptq_mse_with_formats() -> None:
    other = presets.gptq_mse("w4a8", budget=FORMATS)
    assert presets.gptq_mixed("w4a8").changed(name=other.name) == other


def test_pinned_formats_stay() -> None:
    overrides = {"up": {"precision": "w4a8"}}
    model = quantized(presets.gptq_mse("w4a8", budget={"over": "formats", "bytes": 1.6}, overrides=overrides))
    assert model.up.layout.scheme == PRECISIONS["w4a8"] and model.down.layout.scheme != PRECISIONS["w4a8"]


def test_one_fold_is_not_enough() -> None:
    stats = InputStats("down", 64, keep_gram=True, split_gram=True)
    stats.update(tensor(1, 64), 0)
    with pytest.raises(QuantizationError, match="down: auto judges on rows kept apart.*give more batches"):
        layer_candidates(Block().down, presets.gptq_mixed("w4a8"), stats, None, name="down")


@pytest.mark.parametrize("precision", [*(name for name in PRECISIONS if name[0] == "q"), "w4a8_asym", "mxfp4"])
def test_a_layer_as_wide_as_a_super_block_has_every_format(precision: str) -> None:
    """Blocks with and without a least value are no widths and groups of one another."""
    stats = InputStats("one", 256, keep_gram=True, split_gram=True)
    for call in range(4):
        stats.update(tensor(12, 256, seed=call), call)
    linear = torch.nn.Linear(256, 8)
    found = layer_candidates(linear, presets.gptq_mixed(precision), stats, None, name="one").candidates
    formats = {candidate.change.get("precision", precision) for candidate in found}
    assert len(formats) == len(near(formats_of(PRECISIONS[precision], 256), PRECISIONS[precision])) == len(found)
    assert all(0 < candidate.error < 1.5 for candidate in found)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown budget over 'format'.*formats"):
        presets.gptq_mse("w4a8", budget={"over": "format"})
