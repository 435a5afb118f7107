"""LoRA (peft) beside quantized layers, loaded before and after; fusing it is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant import QuantizationError, QuantLinear, presets
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches

peft = pytest.importorskip("peft")
METHODS = {"rtn": presets.rtn("w8a8_dynamic"), "segquant_g": presets.segquant_g("w4a8", alpha=0.5)}
NEAR = {"rtn": 0.05, "segquant_g": 0.2}
TARGETS = ["up", "down"]


def adapted(model: nn.Module, seed: int = 0, name: str = "default", **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False, **settings)
    return peft.inject_adapter_in_model(config, model, name)


def quantized(model: nn.Module, method: str = "segquant_g") -> nn.Module:
    return segquant.quantize_(model, METHODS[method], block_batches(4, seed=1), BLOCK_SEGMENTS)


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**block_batches(1, seed=9)[0])


def switched_off(model: nn.Module, off: bool) -> None:
    for module in model.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.enable_adapters(not off)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", ["adapter", "quantize"])
def test_adapters_work_whichever_comes_first(method: str, first: str) -> None:
    exact, plain = out(adapted(Block())), out(Block())
    model = quantized(adapted(Block()), method) if first == "adapter" else adapted(quantized(Block(), method))
    assert isinstance(model.up.base_layer, QuantLinear) and type(model.up.lora_A["default"]) is nn.Linear
    assert error(exact, plain) > 0.2 and error(out(model), exact) < NEAR[method]
    found = out(model)
    switched_off(model, True)
    assert error(out(model), plain) < NEAR[method]
    switched_off(model, False)
    assert torch.equal(out(model), found)


def test_convolutions_take_adapters_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1))
    x = torch.randn(2, 4, 8, 8)
    both = [copy.deepcopy(model), segquant.quantize_(model, presets.rtn("w8a8_dynamic", convolutions=True), [])]
    for each in both:
        torch.manual_seed(1)
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), each)
    with torch.no_grad():
        assert error(both[1](x), both[0](x)) < 0.02


@pytest.mark.parametrize("safe", [True, False])
def test_merging_is_refused_and_changes_nothing(safe: bool) -> None:
    model = adapted(quantized(Block()))
    before = out(model)
    with pytest.raises(QuantizationError, match="an adapter that is not fused"):
        model.up.merge(safe_merge=safe)
    assert torch.equal(out(model), before) and not model.up.merged


@pytest.mark.parametrize("name", ["merge_adapter", "merge_and_unload"])
def test_nothing_is_merged_where_something_cannot_be(name: str) -> None:
    """Float layers come first here, and would be merged before a quantized one is met."""
    model = segquant.quantize_(Block(), METHODS["rtn"].changed(skip=("up",)), block_batches(4, seed=1))
    plain, config = out(model), peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    tuner = peft.get_peft_model(model, config).base_model
    before = out(model)
    with pytest.raises(QuantizationError, match=rf"{name} would add the adapter to the weights of \S*down, which"):
        getattr(tuner, name)()
    assert torch.equal(out(model), before) and not tuner.model.up.merged
    assert torch.equal(out(tuner.unload()), plain)
    float_tuner = peft.get_peft_model(Block(), config).base_model
    merged = out(float_tuner.model)
    assert error(out(getattr(float_tuner, name)() or float_tuner.model), merged) < 1e-5


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_adapters_are_trained_exchanged_and_taken_out() -> None:
    model = quantized(Block())
    plain = out(model)
    adapted(model)
    first = out(model)
    adapted(model, seed=3, name="other")
    model.up.set_adapter("other")
    assert not torch.equal(out(model), first)
    model.up.set_adapter("default")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**block_batches(1, seed=9)[0]).square().mean().backward()
    optimizer.step()
    assert not torch.equal(out(model), first)
    for name in TARGETS:
        setattr(model, name, getattr(model, name).get_base_layer())
    assert torch.equal(out(model), plain)


def test_a_weight_decomposed_adapter_reads_the_weight() -> None:
    """DoRA takes the norm of the weight's rows."""
    exact, model = out(adapted(Block(), use_dora=True)), adapted(quantized(Block(), "rtn"), use_dora=True)
    assert error(out(model), exact) < 0.05


def test_saved_with_its_adapter_and_told_if_there_is_none(tmp_path: Path) -> None:
    model = quantized(adapted(Block()))
    segquant.save_quantized(model, tmp_path / "model")
    again = segquant.load_quantized(tmp_path / "model", adapted(Block(seed=5), seed=5))
    assert torch.equal(out(again), out(model))
    with pytest.raises(
        QuantizationError, match="with an adapter at (up|down), .*; pass a model with the saved adapters"
    ):
        segquant.load_quantized(tmp_path / "model", Block())
