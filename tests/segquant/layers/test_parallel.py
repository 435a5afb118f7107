"""Streaming, threads and memory groups change when things happen, never the result."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segquant import QuantizationError, QuantLinear, presets, quantize_
from segquant.modules import memory
from segquant.modules.memory import free_bytes, gram_limit
from segquant.observers.gram import ENTRY_BYTES
from tests.segquant.support import BLOCK_SEGMENTS, OUTCOMES, Block, block_batches, told

ONE_MATRIX = ENTRY_BYTES * 64 * 64


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return model.state_dict()


def quantized(model: nn.Module, **options: Any) -> nn.Module:
    method = presets.segquant_g("w8a8", alpha=0.5)
    return quantize_(model, method, block_batches(6, seed=1), BLOCK_SEGMENTS, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"streaming": True},
        {"workers": 3},
        {"streaming": True, "workers": 2},
        {"memory_limit": ONE_MATRIX},
        {"memory_limit": ONE_MATRIX, "streaming": True, "workers": 2},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_bit_identical_to_the_plain_way(options: dict[str, Any], dtype: torch.dtype) -> None:
    batches = [{key: value.to(dtype) for key, value in batch.items()} for batch in block_batches(6, seed=1)]
    method = presets.segquant_g("w8a8", alpha=0.5)
    plain, other = (told(Block().to(dtype), method, batches, BLOCK_SEGMENTS, **extra) for extra in ({}, options))
    assert OUTCOMES[plain].passes == 1
    assert OUTCOMES[other].passes == (3 if "memory_limit" in options else 1)
    assert all(isinstance(layer, QuantLinear) for layer in other.children())
    expected, found = state(plain), state(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("streaming", [True, False])
def test_streaming_frees_a_layer_before_the_next_is_solved(streaming: bool) -> None:
    model = Block()
    order = list(dict(model.named_children()))
    layers = {name: weakref.ref(getattr(model, name)) for name in order}
    alive: list[list[str]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "quantize":
            assert total == 4
            alive.append([name for name, layer in layers.items() if layer() is not None])

    quantized(model, streaming=streaming, progress=progress)
    # the layer just solved is still in the hands of the loop
    expected = [order[index:] if streaming else order for index in range(4)]
    assert alive == expected


def test_statistics_are_given_back_as_layers_are_solved() -> None:
    model = Block()
    grams: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    solve = QuantLinear.from_float

    def spy(linear: nn.Linear, method: Any, stats: Any, *args: Any, **kwargs: Any) -> QuantLinear:
        grams.append(weakref.ref(stats.gram))
        alive.append(sum(entry() is not None for entry in grams))
        return solve(linear, method, stats, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuantLinear, "from_float", staticmethod(spy))
        quantized(model)
    assert alive == [1, 1, 1, 1]


def test_an_error_while_streaming_names_the_layer_and_stops() -> None:
    model = Block()
    with torch.no_grad():
        model.out.weight[0, 0] = float("nan")
    for options in ({"streaming": True}, {"streaming": True, "workers": 2}):
        broken = copy.deepcopy(model)
        with pytest.raises(QuantizationError, match="out: its weight contains NaN"):
            quantized(broken, **options)
        assert isinstance(broken.ada, QuantLinear) and isinstance(broken.out, nn.Linear)


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(QuantizationError, match="workers=0; give the number of layers"):
        quantized(Block(), workers=0)
    with pytest.raises(QuantizationError, match="down: the Gram matrix of its 64 inputs takes"):
        quantized(Block(), memory_limit=ONE_MATRIX - 1)


def test_free_memory_of_this_machine_and_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    device = torch.device("cpu")
    assert free_bytes(device) == 500 * 1024 and gram_limit(device) == 250 * 1024
    (tmp_path / "memory.current").write_text("90000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 20000\n")
    for limit, expected in (("max", 500 * 1024), ("100000", 30000), ("10", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert free_bytes(device) == expected
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert free_bytes(device) is None and gram_limit(torch.device("meta")) is None
