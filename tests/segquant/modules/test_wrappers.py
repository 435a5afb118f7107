"""torch.compile and data-parallel wrappers around a model or its blocks: same layers, same names, same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant import QuantizationError, QuantLinear, find_segments, layer_errors, load_quantized, presets, quantize_
from segquant.modules.wrappers import unwrapped
from tests.segquant.support import Block, block_batches, tensor

METHOD = presets.segquant_g("w8a8_tensor", alpha=0.5)
NAMES = [f"blocks.{index}.{name}" for index in range(2) for name in ("ada", "up", "down", "out")]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(seed=seed) for seed in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, condition)
        return x


def whole(model: Net) -> nn.Module:
    return torch.compile(model, backend="eager")


def in_place(model: Net) -> nn.Module:
    model.compile(backend="eager")
    return model


def forward(model: Net) -> nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def blocks(model: Net) -> nn.Module:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend="eager")
    return model


def blocks_in_place(model: Net) -> nn.Module:
    for block in model.blocks:
        block.compile(backend="eager")
    return model


def layers(model: Net) -> nn.Module:
    for block in model.blocks:
        block.up = torch.compile(block.up, backend="eager")
    return model


WRAPPERS: dict[str, Callable[[Net], nn.Module]] = {
    "whole": whole, "in place": in_place, "forward": forward, "blocks": blocks, "blocks in place": blocks_in_place,
    "layers": layers, "data parallel": nn.DataParallel,
}  # fmt: skip


def with_wrappers(*quick: str) -> pytest.MarkDecorator:
    """Every wrapper; compiling takes seconds, so all but these are slow tests."""
    return pytest.mark.parametrize(
        "wrapper", [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in WRAPPERS]
    )


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return quantize_(Net(), METHOD, block_batches(4, seed=1))


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**block_batches(1, seed=9)[0])


@with_wrappers("in place", "blocks", "data parallel")
def test_a_wrapped_model_that_has_run_is_quantized_as_the_plain_one(wrapper: str, plain: nn.Module) -> None:
    model = WRAPPERS[wrapper](Net())
    exact = out(model)
    assert find_segments(model, (), block_batches(1, seed=1)[0]) == find_segments(
        Net(), (), block_batches(1, seed=1)[0]
    )
    assert quantize_(model, METHOD, block_batches(4, seed=1)) is model
    assert list(segquant.backends(model)) == NAMES
    assert torch.equal(out(model), out(plain)) and not torch.equal(out(model), exact)
    errors = layer_errors(WRAPPERS[wrapper](Net()), model, block_batches(1, seed=9))
    assert list(errors) == NAMES and errors == layer_errors(Net(), plain, block_batches(1, seed=9))


@with_wrappers("whole", "data parallel")
def test_wrapped_before_or_after_it_is_saved_and_loaded_like_the_plain_one(
    wrapper: str, plain: nn.Module, tmp_path: Path
) -> None:
    model = WRAPPERS[wrapper](copy.deepcopy(plain))
    found = out(model)
    assert torch.equal(found, out(plain))
    segquant.save_quantized(model, tmp_path / "wrapped")
    segquant.save_quantized(plain, tmp_path / "plain")
    for file in ("quantized.safetensors", "quantized.json"):
        written = (tmp_path / "wrapped" / file).read_bytes()
        assert written == (tmp_path / "plain" / file).read_bytes(), file
    assert torch.equal(out(load_quantized(tmp_path / "wrapped", Net())), found)
    target = WRAPPERS[wrapper](Net())
    out(target)
    assert load_quantized(tmp_path / "plain", target) is target
    assert torch.equal(out(target), found)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_layer_compiles_into_one_graph(kind: str) -> None:
    layer, x = (nn.Linear(8, 4), tensor(2, 8)) if kind == "linear" else (nn.Conv2d(2, 3, 3), tensor(1, 2, 5, 5))
    quantized = QuantLinear.from_float(layer, presets.rtn("w8a8_dynamic"))
    compiled = torch.compile(quantized, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), quantized(x)) and torch.equal(compiled(x), quantized(x))
    probe = torch.compile(lambda: quantized.weight.to(quantized.weight.dtype) + 0, backend="eager", fullgraph=True)
    assert torch.equal(probe(), quantized.weight)


@torch.no_grad()
def test_what_was_compiled_is_so_afterwards() -> None:
    calls: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        calls.append("compiled")
        return graph.forward

    model = nn.Sequential(torch.compile(nn.Linear(8, 8), backend=backend), nn.Sequential(nn.Linear(8, 8)))
    model[1].compile(backend=backend)
    model(tensor(2, 8))
    assert len(calls) == 2
    with pytest.raises(ZeroDivisionError), unwrapped(model) as inner:
        inner(tensor(2, 8))
        raise ZeroDivisionError
    quantize_(model, presets.rtn("w8a8_dynamic"), [])
    assert len(calls) == 2
    model(tensor(2, 8))
    assert len(calls) == 4 and isinstance(model[0]._orig_mod, QuantLinear)


def test_inside_the_names_are_those_of_the_code() -> None:
    model = blocks(Net())
    with unwrapped(torch.compile(model, backend="eager")) as inner:
        assert inner is model and "blocks.0.up" in dict(inner.named_modules())
    assert "blocks.0._orig_mod.up" in dict(model.named_modules())


def test_a_sharded_model_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        __module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"

        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(8, 8)

    model = nn.Sequential(FullyShardedDataParallel())
    with pytest.raises(QuantizationError, match=r"0 is sharded \(FullyShardedDataParallel\).*before it is sharded"):
        quantize_(model, presets.rtn("w8a8_dynamic"), [])
