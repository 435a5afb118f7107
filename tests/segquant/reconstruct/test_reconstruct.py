"""Block reconstruction on small models: gain on fresh inputs, codes within a step, which linears go together."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from segquant import PRECISIONS, QuantizationError, QuantLinear, Segments, observe, output_error, presets
from segquant.calibrators.adaround import grid_cell
from segquant.calibrators.reconstruction import Reconstruction
from segquant.method.spec import Method
from segquant.modules.swap import swap_
from segquant.numerics import fake_quant
from segquant.numerics import functional as F
from segquant.reconstruct.blocks import Block as ReconstructionBlock
from segquant.reconstruct.blocks import _with_inputs_of, find_blocks, reconstruct_
from segquant.reconstruct.calls import collect_calls, keep_batches, require_repeatable
from segquant.reconstruct.soft_linear import unrounded_weight
from tests.segquant.support import Block, block_segments, tensor

WIDTH = 32
SMALL = Reconstruction(steps=150, strength=30, beta_start=8)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every nn.Linear by its first module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


class Chain(nn.Module):
    """Two blocks in a ModuleList between two linears that stand alone; inputs vary along few directions."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, seed=seed) for seed in range(2))
        self.tail = nn.Linear(WIDTH, 8)
        with torch.no_grad():
            for index, linear in enumerate((self.head, self.tail)):
                linear.weight.copy_(tensor(*linear.weight.shape, seed=index) / WIDTH**0.5)
                linear.bias.zero_()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.tail(x)


def batches(count: int, seed: int) -> list[dict[str, Tensor]]:
    basis = tensor(6, WIDTH, seed=7)
    return [
        {
            "x": tensor(4, 9, 6, seed=seed * 1000 + index) @ basis,
            "condition": tensor(4, 6, seed=seed * 1000 + index + 500) @ basis / 2,
        }
        for index in range(count)
    ]


def solve(model: nn.Module, method: Method, segments: Mapping[str, Segments] | None = None) -> dict[int, QuantLinear]:
    stats = observe(model, batches(4, 1))
    return {
        id(linear): QuantLinear.from_float(linear, method, stats[name], (segments or {}).get(name), name=name)
        for name, linear in linears(model).items()
    }


class One(nn.Module):
    """A single block, so that the model's output error is the block's."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(WIDTH)])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.blocks[0](x, condition)


def one_block_errors(method: Method, settings: Reconstruction) -> tuple[float, float]:
    """Error of a block's output on fresh inputs after rounding to nearest, and after reconstruction."""
    model = One().eval()
    found = []
    for learn in (False, True):
        quantized = copy.deepcopy(model)
        solved = solve(quantized, method)
        if learn:
            reconstruct_(quantized, solved, batches(12, 1), settings)
        swap_(quantized, solved)
        found.append(output_error(model, quantized, batches(6, 2)))
    return found[0], found[1]


@pytest.mark.parametrize("precision", ["w4a8_channel", "w4a8"])
def test_fresh_inputs_gain_at_four_bits(precision: str) -> None:
    plain, learnt = one_block_errors(presets.rtn(precision), SMALL)
    assert learnt < 0.75 * plain


def test_inputs_of_the_quantized_model_belong_to_the_same_calls() -> None:
    model = Chain().eval()
    solved = solve(model, presets.rtn("w4a8_channel"))
    block, kept = ReconstructionBlock("tail", model.tail, []), batches(3, 1)
    calls = collect_calls(model, {"tail": model.tail}, kept)["tail"]
    before = {id(model.head): solved[id(model.head)]}
    mixed = _with_inputs_of(model, before, block, calls, kept)
    assert type(model.head) is nn.Linear
    for batch, exact, call in zip(kept, calls, mixed, strict=True):
        assert torch.equal(call.output, exact.output) and not torch.equal(call.args[0], exact.args[0])
        swapped_model = copy.deepcopy(model)
        swapped_model.head = solved[id(model.head)]
        torch.testing.assert_close(model.tail(call.args[0]), swapped_model(**batch))
    settings = Reconstruction(steps=2, quantized_inputs=True)
    assert set(reconstruct_(model, solved, kept, settings)) == {"head", "blocks.0", "blocks.1", "tail"}


METHODS = {
    "tensor": presets.segquant_a("w8a8_tensor", alpha=0.5),
    "dual": presets.rtn("w8a8", seglinear=True, dualscale=True),
    "fp8": presets.rtn("fp8"),
    "branches": presets.svdquant("w4a8", alpha=0.5, rank=2, seglinear=True),
    "rotated": presets.quarot("w4a8_channel", calibrator="amax"),
}


@pytest.mark.parametrize("name", METHODS)
def test_any_layout_ends_on_one_of_the_two_neighbours(name: str) -> None:
    model, settings = Chain().eval(), Reconstruction(steps=15, lr=0.2, strength=10, held_out=0)
    segments = {f"blocks.{i}.{n}": s for i in range(2) for n, s in block_segments(WIDTH).items()}
    solved = solve(model, METHODS[name], segments)
    before = {key: module.codes.clone() for key, module in solved.items()}
    reconstruct_(model, solved, batches(4, 1), settings)
    for linear in linears(model).values():
        layout, tensors = solved[id(linear)].layout, dict(solved[id(linear)].named_buffers())
        scale = fake_quant.expand_weight_scale(tensors["weight_scale"], layout.weight_rows, layout.weight_columns)
        unrounded = unrounded_weight(linear.weight.detach(), layout, tensors)
        lower, gap = grid_cell(unrounded / scale, layout.weight_spec.dtype)
        codes = fake_quant.dequantize_weight(layout, tensors) / scale
        off = torch.minimum((codes - lower).abs(), (codes - lower - gap).abs())
        assert float(off.max()) < 1e-4
    assert any(not torch.equal(before[key], module.codes) for key, module in solved.items())


@pytest.mark.parametrize("name", METHODS)
def test_unrounded_weight_is_what_the_codes_came_from(name: str) -> None:
    model = Chain().eval()
    segments = {f"blocks.{i}.{n}": s for i in range(2) for n, s in block_segments(WIDTH).items()}
    for key, module in solve(model, METHODS[name], segments).items():
        linear = next(entry for entry in linears(model).values() if id(entry) == key)
        tensors, layout = dict(module.named_buffers()), module.layout
        scale = fake_quant.expand_weight_scale(module.weight_scale, layout.weight_rows, layout.weight_columns)
        unrounded = unrounded_weight(linear.weight.detach(), layout, tensors)
        expected = F.fake_quantize(unrounded, scale, layout.weight_spec.dtype)
        found = fake_quant.dequantize_weight(layout, tensors)
        # a value on the very edge between two codes may fall to either side
        assert float(((found - expected).abs() > 1e-5 * scale).float().mean()) < 1e-3


def test_same_codes_twice_and_the_model_left_alone() -> None:
    method, found = presets.rtn("w4a8_channel"), []
    for _ in range(2):
        model = Chain().train()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        solved = solve(model, method)
        ratios = reconstruct_(model, solved, batches(6, 1), Reconstruction(steps=10))
        found.append((ratios, [module.codes for module in solved.values()]))
        assert model.training and all(type(m) is nn.Linear for m in linears(model).values())
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_memory_limit_changes_nothing_but_the_number_of_runs() -> None:
    found = []
    for limit in (1, 2**31):
        model = Chain().eval()
        solved = solve(model, presets.rtn("w4a8_channel"))
        found.append(reconstruct_(model, solved, batches(6, 1), Reconstruction(steps=5, memory_limit=limit)))
    assert found[0] == found[1]


def test_blocks_are_list_entries_and_linears_that_are_left() -> None:
    model = Chain()
    blocks = find_blocks(model, solve(model, presets.rtn("w8a8")))
    assert {block.name: len(block.pairs) for block in blocks} == {"blocks.0": 4, "blocks.1": 4, "head": 1, "tail": 1}
    outer = nn.ModuleList([model, nn.Sequential(nn.Linear(4, 4))])  # the innermost entries count
    assert {block.name for block in find_blocks(outer, solve_all(outer))} == {
        "0.blocks.0", "0.blocks.1", "0.head", "0.tail", "1.0",
    }  # fmt: skip


def solve_all(model: nn.Module) -> dict[int, QuantLinear]:
    method = Method.of("weights", PRECISIONS["w8a8_dynamic"])
    return {id(linear): QuantLinear.from_float(linear, method) for linear in linears(model).values()}


def test_a_block_whose_forward_is_bypassed_is_learnt_linear_by_linear() -> None:
    class Bypass(Chain):
        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            return self.tail(self.blocks[0].forward(self.head(x), condition))

    model = Bypass().eval()
    found = reconstruct_(model, solve_all(model), batches(3, 1), Reconstruction(steps=2))
    assert set(found) == {"head", "tail", "blocks.0.ada", "blocks.0.up", "blocks.0.down", "blocks.0.out"}


def test_only_chosen_linears_are_learnt() -> None:
    model = Chain().eval()
    solved = solve(model, presets.rtn("w4a8_channel"))
    before = {key: module.codes.clone() for key, module in solved.items()}
    chosen = id(model.blocks[0].up)
    settings = Reconstruction(steps=30, lr=0.1, strength=10, held_out=0)
    assert set(reconstruct_(model, solved, batches(4, 1), settings, learn={chosen})) == {"blocks.0.up"}
    assert [key for key, module in solved.items() if not torch.equal(module.codes, before[key])] == [chosen]


def test_a_used_up_iterator_is_an_error() -> None:
    model = Chain().eval()
    used = iter(batches(2, 1))
    list(used)
    with pytest.raises(QuantizationError, match="can be gone through repeatedly"):
        reconstruct_(model, solve(model, presets.rtn("w8a8")), used)


def test_a_generator_is_refused_beforehand() -> None:
    require_repeatable([1])
    with pytest.raises(QuantizationError, match="not a generator"):
        require_repeatable(batch for batch in batches(2, 1))


def test_kept_batches_are_bounded_drawn_uniformly_and_in_order() -> None:
    whole = [{"x": torch.full((3, 1), float(index))} for index in range(10)]
    counts = torch.zeros(10)
    for seed in range(300):
        kept = [int(batch["x"][0]) for batch in keep_batches(whole, 7, seed)]
        assert len(kept) == 3 and kept == sorted(kept)
        counts[kept] += 1
    assert bool(((counts - 90).abs() < 35).all())  # 90 ± 8 expected, over four standard deviations
