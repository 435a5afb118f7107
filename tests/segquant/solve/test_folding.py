"""Smoothing folded into the norm, AdaLN or linear before: the same codes, layers without a division of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segquant import (
    Method,
    Outcome,
    QuantizationError,
    QuantLinear,
    layer_errors,
    load_quantized,
    output_error,
    presets,
    quantize_with_outcome_,
    save_quantized,
)
from segquant.numerics.layout import Layout
from segquant.offload.quantize import quantize_offloaded_
from segquant.offload.weights import Offloaded
from segquant.optimizers.smooth import smoothing
from tests.segquant.support import Block, block_batches, tensor

WIDTH = 16


class Attention(nn.Module):
    """A norm that three layers read, and a gated feed-forward behind another; outliers in two channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            self.norm1.weight[3], self.norm2.weight[5] = 20.0, 9.0
            self.norm1.bias.normal_()
            self.up.weight[2 * WIDTH - 1] *= 12

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        first, gate = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(first * F.silu(gate))


def batches(count: int = 4, seed: int = 1) -> list[tuple[Tensor]]:
    return [(tensor(2, 9, WIDTH, seed=100 * seed + index),) for index in range(count)]


def made(model: nn.Module, method: Method, data: Any = None, **options: Any) -> tuple[nn.Module, Outcome]:
    found = copy.deepcopy(model)
    return found, quantize_with_outcome_(found, method, batches() if data is None else data, **options)


def smooth(precision: str = "w8a8", **fields: Any) -> Method:
    return Method.of("m", precision, **{"optimizer": "smooth", "smoothing": "fold", **fields})


def quantized(model: nn.Module) -> dict[str, QuantLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    first, second = ours.state_dict(), theirs.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w8a8_dynamic", "w4a8"])
def test_a_layer_alone_gets_the_codes_that_it_had(precision: str) -> None:
    data = block_batches(4, 1)
    by_layer, _ = made(Block(), smooth(precision, smoothing="layer"), data)
    folded, outcome = made(Block(), smooth(precision), data)
    assert outcome.folded == ("up",) and folded.up.layout.folded and not folded.up.layout.transforms
    assert torch.equal(folded.up.codes, by_layer.up.codes)
    ratio = by_layer.up.smooth[0] / folded.up.folded
    assert torch.equal(ratio, ratio[:1].expand_as(ratio)) and float(ratio[0]).hex().startswith("0x1.0000000000000p")
    assert 0.5 < float(folded.up.folded.max()) <= 1
    exact = layer_errors(Block(), by_layer, data)["up"]
    assert layer_errors(Block(), folded, data)["up"] == pytest.approx(exact, rel=1e-3)


def test_rows_of_the_adaln_are_those_of_the_divided_float_layer() -> None:
    folded, _ = made(Block(), smooth("w8a8"), block_batches(4, 1))
    s, ada, layer = folded.up.folded, Block().requires_grad_(False).ada, folded.ada
    with torch.no_grad():
        ada.weight[:32] /= s[:, None]
        ada.weight[32:64] /= s[:, None]
        ada.bias[:32] /= s
        ada.bias[32:64] = (ada.bias[32:64] + 1) / s - 1
    assert layer.layout.folded_rows == ((0, 32, 0.0), (32, 64, 1.0))
    torch.testing.assert_close(layer.bias, ada.bias)
    assert float((layer.weight - ada.weight).norm() / ada.weight.norm()) < 0.01
    alone, _ = made(Block(), smooth("w8a8", optimizer="none"), block_batches(4, 1))
    assert torch.equal(alone.ada.codes, layer.codes), "scales per output take the vector in"


def test_layers_that_share_an_input_share_a_vector() -> None:
    model = Attention()
    folded, outcome = made(model, smooth(alpha=0.5))
    assert outcome.folded == ("q", "k", "v", "up", "down")
    vector = folded.q.folded
    assert torch.equal(vector, folded.k.folded) and torch.equal(vector, folded.v.folded)
    x = model.norm1(torch.cat([entry for (entry,) in batches()]))
    weight = torch.cat([model.q.weight, model.k.weight, model.v.weight])
    rule = smoothing(x.abs().flatten(0, -2).amax(0).detach(), weight.abs().amax(0).detach(), 0.5)
    torch.testing.assert_close(vector / vector[0], rule / rule[0])
    torch.testing.assert_close(folded.norm1.weight, model.norm1.weight / vector)
    torch.testing.assert_close(folded.norm1.bias, model.norm1.bias / vector)
    torch.testing.assert_close(folded.norm2.weight, model.norm2.weight / folded.up.folded)
    assert folded.up.layout.folded_rows == ((0, 2 * WIDTH, 0.0),)
    assert not any(layer.layout.transforms for layer in quantized(folded).values())


def in_float(folded: nn.Module, model: nn.Module) -> nn.Module:
    """The folded model with the float model's weights in the place of codes, divided and multiplied as they were."""
    found = copy.deepcopy(folded)
    for name, layer in quantized(folded).items():
        old: Any = model.get_submodule(name)
        linear = copy.deepcopy(old)
        vector = layer.folded_rows if layer.layout.folded_rows else None
        with torch.no_grad():
            for start, stop, plus in layer.layout.folded_rows:
                own, vector = vector[: stop - start], vector[stop - start :]
                linear.weight[start:stop] /= own[:, None]
                if linear.bias is not None:
                    linear.bias[start:stop] = (linear.bias[start:stop] + plus) / own - plus
            if layer.layout.folded:
                linear.weight *= layer.folded
        setattr(found, name, linear)
    return found


def test_the_folded_model_is_the_float_one_but_for_rounding() -> None:
    for model, data in ((Attention(), [{"x": x} for (x,) in batches()]), (Block(), block_batches(4, 1))):
        folded, outcome = made(model, smooth(alpha=0.8), data)
        assert outcome.folded
        with torch.no_grad():
            ours, exact = in_float(folded, model)(**data[0]), model(**data[0])
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


WAYS: list[dict[str, Any]] = [
    {}, {"calibrator": "gptq", "bias_correction": True}, {"rotate": True},
    {"seglinear": True, "dualscale": True, "negative": "shift", "precision": "w8a8_tensor"},
]  # fmt: skip
SLOW_WAYS: list[dict[str, Any]] = [
    {"optimizer": "awq"}, {"optimizer": "balance"}, {"optimizer": "svd", "rank": 2, "seglinear": True},
    {"seglinear": True, "dualscale": True, "negative": "zero_point"},
]  # fmt: skip


@pytest.mark.parametrize("fields", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in SLOW_WAYS)], ids=str)
def test_errors_are_those_of_smoothing_by_layer(fields: dict[str, Any]) -> None:
    precision, fields = fields.get("precision", "w8a8"), {k: v for k, v in fields.items() if k != "precision"}
    model, fresh = Attention(), batches(3, seed=7)
    errors = {}
    for form in ("layer", "fold"):
        found, outcome = made(model, smooth(precision, **fields, smoothing=form))
        errors[form] = output_error(model, found, fresh), layer_errors(model, found, fresh)
        assert bool(outcome.folded) == (form == "fold")
    for name, error in errors["fold"][1].items():
        assert error < 1.35 * errors["layer"][1][name] + 2e-3, name
    assert errors["fold"][0] < 2.5 * errors["layer"][0] + 1e-3, "of the whole, which is chaotic"


def test_what_cannot_fold_is_smoothed_by_itself_or_not_at_all() -> None:
    data = block_batches(4, 1)
    names = {}
    for form in ("fold", "fold_or_layer"):
        found, outcome = made(Block(), smooth(smoothing=form), data)
        assert outcome.folded == ("up",)
        names[form] = [name for name, layer in quantized(found).items() if layer.layout.transform("smoothing")]
    assert names == {"fold": [], "fold_or_layer": ["ada", "down", "out"]}


def test_layers_that_differ_do_not_fold() -> None:
    for changes, folded in (
        ({"k": {"precision": "w8a8_dynamic"}}, ("up", "down")),
        ({"v": {"skip": True}}, ("up", "down")),
        ({"up": {"smoothing": "layer"}}, ("q", "k", "v", "down")),
        ({"*": {"optimizer": "none"}}, ()),
    ):
        _, outcome = made(Attention(), smooth(overrides=changes))
        assert outcome.folded == folded


def test_a_float_producer_takes_the_vector_in_too() -> None:
    model, data = Block(), block_batches(4, 1)
    found, _ = made(model, smooth(skip=["ada"], alpha=0.5), data)
    assert type(found.ada) is nn.Linear
    torch.testing.assert_close(found.ada.weight[:32], model.ada.weight[:32] / found.up.folded[:, None])
    assert torch.equal(found.ada.weight[64:], model.ada.weight[64:])
    assert output_error(model, found, data) < 0.1
    assert torch.equal(model.ada.weight, Block().ada.weight), "the given parameters are not written to"


@pytest.mark.parametrize("options", [{"streaming": True}, {"workers": 2}, {"memory_limit": 14_000}], ids=str)
def test_the_same_bytes_however_it_is_run(options: dict[str, Any]) -> None:
    method = smooth("w8a8", calibrator="gptq")
    plain, outcome = made(Attention(), method)
    other, second = made(Attention(), method, **options)
    assert same(plain, other) and outcome.folded == second.folded
    assert (second.passes > 1) == ("memory_limit" in options)


def test_half_precision() -> None:
    model = Block().to(torch.bfloat16)
    data = [{key: value.bfloat16() for key, value in batch.items()} for batch in block_batches(4, 1)]
    errors = [output_error(model, made(model, smooth(smoothing=form), data)[0], data) for form in ("fold", "layer")]
    found, _ = made(model, smooth(), data)
    assert found.ada.weight.dtype == found.ada.bias.dtype == torch.bfloat16
    assert errors[0] < 1.3 * errors[1] + 2e-3


def test_a_folded_model_is_saved_and_loaded(tmp_path: Path) -> None:
    found, outcome = made(Attention(), smooth())
    save_quantized(found, tmp_path / "m", outcome)
    again = load_quantized(tmp_path / "m", Attention())
    assert same(found, again) and torch.equal(found(*batches()[0]), again(*batches()[0]))
    layout = again.up.layout
    assert layout == found.up.layout == Layout.from_dict(layout.to_dict()) and layout.folded and layout.folded_rows
    assert not {"folded", "folded_rows"} & made(Attention(), smooth(smoothing="layer"))[0].up.layout.to_dict().keys()
    assert Outcome.from_dict(outcome.to_dict()) == outcome
    method = smooth().to_dict()
    del method["cuts"]["smoothing"]
    assert Method.from_dict(method).cuts.smoothing == "layer", "saved before there was a choice"


def test_an_engine_without_smoothing_gets_it_folded() -> None:
    method = presets.smoothquant("w8a8_dynamic", deploy="comfy")
    assert method.cuts.smoothing == "fold" and method.value("deploy") == "comfy"
    assert presets.smoothquant("w8a8", deploy="comfy", smoothing="layer").cuts.smoothing == "layer"
    assert presets.smoothquant("w8a8", deploy="onnx").cuts.smoothing == "layer"
    found, _ = made(Attention(), method)
    assert all(layer.layout.branches == (layer.out_features,) for layer in quantized(found).values())


def test_auto_judges_layers_without_smoothing_that_they_would_not_have() -> None:
    model = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4))
    found, outcome = made(model, presets.auto("w8a8", deploy="comfy"), batches(8))
    assert not found[1].layout.transform("smoothing")
    assert outcome.choices is not None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown smoothing 'norm'; .*fold"):
        smooth(smoothing="norm")
    with pytest.raises(ValueError, match="'adaround' compares with; choose smoothing='layer'"):
        smooth(calibrator="adaround")


def test_blocks_that_are_read_one_by_one_are_refused() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Attention()])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](x)

    weights = dict(Blocks().named_parameters())
    offloaded = Offloaded(Blocks(), lambda names: {name: weights[name].detach() for name in names})
    with pytest.raises(QuantizationError, match="whole float model in memory; .* choose smoothing='layer'"):
        quantize_offloaded_(offloaded, smooth(), batches())


def test_adapters_of_the_float_model_are_refused() -> None:
    peft = pytest.importorskip("peft")
    found, _ = made(Attention(), smooth())
    config = peft.LoraConfig(r=2, target_modules=["q"])
    with pytest.raises(QuantizationError, match=r"adapter \(LoRA\) does not fit .*smoothing='layer'"):
        peft.inject_adapter_in_model(config, found)
    whole, _ = made(Attention(), smooth(smoothing="layer"))
    peft.inject_adapter_in_model(config, whole)


def test_an_adapter_that_is_there_already_keeps_its_layer_as_it_is() -> None:
    peft = pytest.importorskip("peft")
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q"]), Attention())
    _, outcome = made(model, smooth())
    assert outcome.folded == ("up", "down")
