"""Other people's tools on the tiny denoiser; skipped where they are not installed."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import inspect
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segquant import (
    PRECISIONS,
    QuantScheme,
    QuantSpec,
    layer_errors,
    model_weight_bytes,
    output_error,
    presets,
    quantize_,
)
from segquant_bench.pipelines import peers
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.peers import Peer, tensors_digest
from segquant_bench.pipelines.peers.peer import branch_rank
from tests.pipelines.conftest import Command, Tiny, compose_config
from tests.tiny import tiny_denoiser

CAN = {
    "modelopt_int8": ("w8a8_tensor", "w8a8", "w8a8_dynamic"),
    "modelopt_fp8": ("fp8",),
    "modelopt_smoothquant": ("w8a8_tensor", "w8a8"),
    "modelopt_awq": ("w4a8_channel", "w4a8", "w4a4", "w4a16"),
    "modelopt_svdquant": ("w8a8_tensor", "w8a8", "w8a8_dynamic", "w4a8_channel", "w4a8", "w4a4", "w4a16"),
    "torchao_int8_dynamic": ("w8a8_dynamic",),
    "torchao_int8_static": ("w8a8_tensor", "w8a8"),
    "torchao_int4": ("w4a8_channel", "w4a8", "w4a16"),
    "torchao_intx": ("w8a16", "w4a16", "w3a16", "w2a16"),
    "torchao_fp8": ("fp8_dynamic",),
    "torchao_mx": ("mxfp8", "mxfp6", "mxfp4"),
    "torchao_nvfp4": ("nvfp4",),
    "quanto": ("w8a8", "fp8", "w8a16", "w4a16", "w2a16"),
    "sdnq": ("w8a8_dynamic", "fp8_dynamic", "w4a8_channel", "w4a8", "w8a16", "w4a16", "w3a16", "w2a16"),
    "bnb_nf4": ("w4a16_nf4",),
    "bnb_fp4": ("w4a16",),
    "bnb_int8": ("w8a8_dynamic",),
    "gguf": ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"),
}
FP4 = QuantScheme(QuantSpec("fp4_e2m1", "group", 64), None)
"""What is nearest to bitsandbytes' FP4."""
PAIRS = [(name, precision) for name, able in CAN.items() for precision in able]


def peer(name: str, precision: str, **options: Any) -> Peer:
    """The quantizer, or a skipped test where its package is missing."""
    try:
        return getattr(peers, name)(precision, **options)
    except PipelineError as error:
        if "[peers]" in str(error):
            pytest.skip(str(error))
        raise


def _batch(seed: int, rows: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(*shape, generator=generator) for shape in ((rows, 4, 16, 16), (rows, 10, 64), (rows, 64))]
    hidden, text, pooled = draw
    hidden[:, 0] *= 4  # an outlier channel, so that formats differ
    timestep = 1000 * torch.rand(rows, generator=generator)
    return {
        "hidden_states": hidden, "encoder_hidden_states": text, "pooled_projections": pooled, "timestep": timestep,
        "return_dict": False,
    }  # fmt: skip


def _mean(errors: dict[str, float]) -> float:
    return statistics.fmean(errors.values())


BATCHES, HELD_OUT = [_batch(0), _batch(1), _batch(2)], [_batch(10), _batch(11, rows=3)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return tiny_denoiser(layers=1)


Rounded = Callable[[str, str | QuantScheme], tuple[dict[str, float], int]]


@pytest.fixture(scope="module")
def ours(model: nn.Module) -> Rounded:
    """Layer errors and bytes of a preset of this project at a precision."""

    @functools.cache
    def made(preset: str, precision: str | QuantScheme) -> tuple[dict[str, float], int]:
        options = {"alpha": 0.5} if preset == "smoothquant" else {}
        method = getattr(presets, preset)(precision, **options)
        quantized = quantize_(copy.deepcopy(model), method, BATCHES)
        return layer_errors(model, quantized, HELD_OUT), model_weight_bytes(quantized)

    return made


@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_each_tool_at_each_precision(model: nn.Module, ours: Rounded, name: str, precision: str) -> None:
    tool = peer(name, precision)
    before = tensors_digest(model)
    quantized = tool.quantize_(copy.deepcopy(model), BATCHES)
    names = tool.layers(model)
    assert tensors_digest(model) == before
    assert len(names) == sum(isinstance(module, nn.Linear) for module in model.modules())
    errors = layer_errors(model, quantized, HELD_OUT, names)
    assert errors.keys() == set(names) and min(errors.values()) > 0
    # at the same bits no tool may be far from this project's plain method, for better or worse
    preset = "smoothquant" if name == "modelopt_smoothquant" else "rtn"
    plain, size = ours(preset, FP4 if name == "bnb_fp4" else precision)
    assert 0.4 < _mean(errors) / _mean(plain) < 1.5
    bits = PRECISIONS[precision].weight.bits
    assert 0 < output_error(model, quantized, HELD_OUT) < (0.25 if bits > 2 else 0.4)
    found = tool.weight_bytes(quantized, names)
    share = found / model_weight_bytes(model)
    assert (0.15 < share < 0.33) if bits < 8 else (0.25 < share < 0.45)
    assert 0.95 < found / size < 1.15
    json.dumps(tool.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "precision", "preset", "tolerance"),
    [
        ("modelopt_int8", "w8a8_tensor", "rtn", 0.01),
        ("modelopt_int8", "w8a8_dynamic", "rtn", 0.01),
        ("modelopt_smoothquant", "w8a8", "smoothquant", 0.01),
        ("torchao_int8_static", "w8a8", "rtn", 0.15),  # its scales take 255 steps where others take 254
        ("torchao_int8_dynamic", "w8a8_dynamic", "rtn", 0.15),
        ("torchao_fp8", "fp8_dynamic", "rtn", 1e-5),
        ("torchao_nvfp4", "nvfp4", "rtn", 0.05),  # its inputs' second scale is one per call, ours one per token
        ("quanto", "w8a16", "rtn", 1e-5),
        ("sdnq", "w8a16", "rtn", 1e-5),
        ("bnb_nf4", "w4a16_nf4", "rtn", 1e-5),
        ("gguf", "q8_0", "rtn", 0.05),  # it takes codes from a scale that is not rounded yet
        ("gguf", "q4_0", "rtn", 0.02),
    ],
)
def test_the_same_method_gives_the_same_error_in_every_layer(
    model: nn.Module, ours: Rounded, name: str, precision: str, preset: str, tolerance: float
) -> None:
    tool = peer(name, precision)
    quantized = tool.quantize_(copy.deepcopy(model), BATCHES)
    errors = layer_errors(model, quantized, HELD_OUT, tool.layers(model))
    assert errors == pytest.approx(ours(preset, precision)[0], rel=tolerance)


@pytest.mark.parametrize("precision", CAN["torchao_mx"])
def test_with_the_specifications_rule_torchaos_mx_is_ours(model: nn.Module, ours: Rounded, precision: str) -> None:
    plain, _ = ours("rtn", precision)
    found = []
    for scaling in ("floor", "rceil"):
        tool = peer("torchao_mx", precision, scaling=scaling)
        quantized = tool.quantize_(copy.deepcopy(model), BATCHES)
        found.append(layer_errors(model, quantized, HELD_OUT, tool.layers(model)))
    assert found[0] == pytest.approx(plain, rel=1e-6)
    assert _mean(found[1]) < 0.95 * _mean(found[0])  # its own default does not clip


REPEATED = [
    ("modelopt_int8", "w8a8"),
    ("sdnq", "w4a8"),
    ("quanto", "w4a16"),
    ("bnb_nf4", "w4a16_nf4"),
    ("bnb_int8", "w8a8_dynamic"),
    ("gguf", "q5_1"),
    ("torchao_mx", "mxfp6"),
]


@pytest.mark.parametrize(("name", "precision"), REPEATED)
def test_made_again_it_is_the_same_and_skipped_layers_are_exact(model: nn.Module, name: str, precision: str) -> None:
    options = {"svd": True} if name == "sdnq" else {}
    tool = peer(name, precision, skip=["*.norm1.linear"], **options)
    first, second = (tool.quantize_(copy.deepcopy(model), BATCHES) for _ in range(2))
    assert tensors_digest(first) == tensors_digest(second) != tensors_digest(model)
    skipped = "transformer_blocks.0.norm1.linear"
    assert skipped not in tool.layers(model)
    assert layer_errors(model, first, HELD_OUT, [skipped]) == {skipped: 0.0}


def test_a_low_rank_branch_lowers_the_error_and_costs_bytes(model: nn.Module) -> None:
    plain, branch = peer("sdnq", "w4a16"), peer("sdnq", "w4a16", svd=True, rank=16)
    names = plain.layers(model)
    found = [tool.quantize_(copy.deepcopy(model), BATCHES) for tool in (plain, branch)]
    assert output_error(model, found[1], HELD_OUT) < output_error(model, found[0], HELD_OUT)
    assert plain.weight_bytes(found[0], names) < branch.weight_bytes(found[1], names)


def test_bytes_of_a_layer_are_those_of_its_format() -> None:
    """Of 64 × 128 weights: codes, then scales, then what each tool adds."""
    layer = nn.Sequential(nn.Linear(128, 64, bias=False)).eval()
    count, batches = 64 * 128, [(torch.randn(40, 128),)]
    expected = {
        ("gguf", "q8_0"): count // 32 * 34,
        ("gguf", "q4_0"): count // 32 * 18,
        ("gguf", "q4_1"): count // 32 * 20,
        ("gguf", "q5_0"): count // 32 * 22,
        ("gguf", "q5_1"): count // 32 * 24,
        ("torchao_mx", "mxfp8"): count + count // 32,
        ("torchao_mx", "mxfp6"): count * 3 // 4 + count // 32,
        ("torchao_mx", "mxfp4"): count // 2 + count // 32,
        ("torchao_nvfp4", "nvfp4"): count // 2 + count // 16 + 4,
        ("torchao_fp8", "fp8_dynamic"): count + 64 * 4,
        ("torchao_intx", "w3a16"): count * 3 // 8 + count // 64 * 5,  # a zero point of one byte, always 0
        ("bnb_int8", "w8a8_dynamic"): count + 64 * 4 + 1,
        ("quanto", "w2a16"): count // 4 + count // 32 * 8 + 8,
        ("sdnq", "w2a16"): count // 4 + count // 32 * 8,
    }
    for (name, precision), size in expected.items():
        tool = peer(name, precision)
        assert tool.weight_bytes(tool.quantize_(copy.deepcopy(layer), batches), ["0"]) == size, (name, precision)
    for double_quant, scales in ((False, count // 64 * 4), (True, count // 64 + 4 + 4 * 256)):
        tool = peer("bnb_nf4", "w4a16_nf4", double_quant=double_quant)
        size = tool.weight_bytes(tool.quantize_(copy.deepcopy(layer), batches), ["0"])
        assert 0 < size - (count // 2 + scales + 16 * 4) < 200  # the rest is its record of shapes, in JSON


OWN_INPUTS = (
    ("torchao_mx", "mxfp8"), ("torchao_mx", "mxfp4"), ("torchao_nvfp4", "nvfp4"), ("torchao_fp8", "fp8_dynamic"),
    ("bnb_int8", "w8a8_dynamic"), ("bnb_nf4", "w4a16_nf4"), ("gguf", "q4_0"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "precision"), OWN_INPUTS)
def test_inputs_of_zeros_and_of_any_strides(name: str, precision: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    x = torch.randn(64, 5, 3).transpose(0, 2)
    quantized = peer(name, precision).quantize_(copy.deepcopy(model), [(x,)])
    with torch.no_grad():
        assert torch.equal(quantized(torch.zeros(2, 64)), model[0].bias.expand(2, 32))
        found = quantized(x)
        torch.testing.assert_close(found, quantized(x.contiguous()))
    assert found.shape == (3, 5, 32) and output_error(model, quantized, [(x,)]) < 0.25


def test_channels_beyond_the_threshold_stay_floats() -> None:
    """Of LLM.int8: an outlier spoils its row's scale, unless its channel is left out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64)).eval()
    batch = torch.randn(40, 128)
    batch[:, 7] = 100.0
    errors = []
    for threshold in (6.0, 0.0):
        tool = peer("bnb_int8", "w8a8_dynamic", threshold=threshold)
        errors.append(output_error(model, tool.quantize_(copy.deepcopy(model), [(batch,)]), [(batch,)]))
    assert errors[0] < 0.25 * errors[1]


@pytest.mark.parametrize("name", CAN)
def test_a_precision_that_a_tool_cannot_do(name: str) -> None:
    for precision in PRECISIONS:
        if precision not in CAN[name]:
            with pytest.raises(PipelineError, match=f"cannot do precision={precision}; it can do .*{CAN[name][-1]}"):
                getattr(peers, name)(precision)
    with pytest.raises(ValueError, match="w8a9"):
        getattr(peers, name)("w8a9")


@pytest.mark.parametrize("name", [*CAN, "sdnq_svd"])
def test_configuration_files_show_every_argument_at_its_default(name: str) -> None:
    shown = validate(compose_config([f"quantizer={name}", "precision=w8a8"])).quantizer
    function = getattr(peers, shown.pop("_target_").removeprefix("segquant_bench.pipelines.peers."))
    assert shown.pop("name", name) == name and shown.pop("precision") == "w8a8"
    defaults = {key: item.default for key, item in inspect.signature(function).parameters.items() if key != "precision"}
    changed = {"svd": True} if name == "sdnq_svd" else {}
    assert {**shown, "skip": tuple(shown["skip"])} == {**defaults, **changed}


@pytest.mark.parametrize("name", CAN)
def test_a_missing_tool_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(PipelineError, match=rf"quantizer={name} needs .*pip install 'segquant\[peers\]'"):
        getattr(peers, name)(CAN[name][0])


def test_options_out_of_range() -> None:
    for name, options in (
        ("modelopt_smoothquant", {"alpha": 2.0}),
        ("modelopt_awq", {"alpha_step": 0.0}),
        ("modelopt_svdquant", {"rank": 0}),
        ("sdnq", {"rank": 0}),
        ("bnb_int8", {"threshold": -1.0}),
        ("torchao_mx", {"scaling": "up"}),
        ("torchao_intx", {"qparams": "best"}),
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            getattr(peers, name)(CAN[name][0], **options)


class Branched(nn.Module):
    """One linear that is called, one that never is, one whose width no group divides."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.odd = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(72, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x) + self.odd(torch.nn.functional.pad(x, (0, 8)))


def test_layers_that_cannot_be_quantized_are_named() -> None:
    batches = [(torch.randn(40, 64),)]
    with pytest.raises(PipelineError, match="groups of 64 .* odd.*quantizer.skip"):
        peer("torchao_int4", "w4a16").quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match="never called unused; add them to quantizer.skip"):
        peer("torchao_int8_static", "w8a8").quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match="finds no linear"):
        peer("torchao_int4", "w4a16", skip=["*"]).quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match=r"multiples of 16, but 0 has \[20, 64\]; add it to quantizer.skip"):
        peer("torchao_nvfp4", "nvfp4").quantize_(nn.Sequential(nn.Linear(64, 20)).eval(), batches)
    peer("torchao_int8_static", "w8a8", skip=["unused"]).quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match=r"quantizer\.skip: 'unusd' matches none of the model's \d linears"):
        peer("torchao_int8_static", "w8a8", skip=["unused", "unusd"]).quantize_(Branched().eval(), batches)


@pytest.mark.parametrize(("name", "precision"), [("torchao_fp8", "fp8_dynamic"), ("torchao_nvfp4", "nvfp4")])
def test_weights_of_zeros_that_would_be_nan_are_named(name: str, precision: str) -> None:
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    nn.init.zeros_(model[0].weight)
    with pytest.raises(PipelineError, match=f"{name} makes NaN of zeros in the weight of 0; add it to quantizer.skip"):
        peer(name, precision).quantize_(model, [(torch.randn(4, 64),)])


def test_inputs_of_two_shapes_are_named() -> None:
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    batches = [(torch.randn(2, 64),), (torch.randn(2, 3, 64),)]
    with pytest.raises(PipelineError, match=r"0 sees \[2, 3\] axes"):
        peer("torchao_int8_static", "w8a8").quantize_(model, batches)


def test_one_rank_for_the_whole_model() -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 256), nn.Linear(2048, 2048), nn.Linear(32, 32))
    assert branch_rank(model, "0123", None) == 8
    assert branch_rank(model, "0123", 5) == 5


@pytest.mark.parametrize(
    ("name", "precision", "package"),
    [("torchao_int8_static", "w8a8", "torchao"), ("bnb_int8", "w8a8_dynamic", "bitsandbytes")],
)
def test_a_run_and_its_model_made_again(
    command: Command, tiny: Tiny, cache: Path, name: str, precision: str, package: str
) -> None:
    from segquant_bench.pipelines.stages.benchmark import open_run
    from segquant_bench.pipelines.stages.quantize import quantized_denoiser

    peer(name, precision)
    overrides = [*tiny.overrides(cache), f"quantizer={name}", f"precision={precision}"]
    outcome = command(*overrides)
    assert outcome.code == 0, outcome.err
    assert "warn" not in outcome.err.lower() and "will be cast" not in outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    assert (results["quantizer"], results["precision"]) == (name, precision)
    assert results["versions"][package] and results["weight_bytes"] < 0.4 * results["weight_bytes_float"]
    assert len(results["layer_errors"]) > 20 and 0 < results["output_error"] < 0.2
    (made,) = (cache / "stage").glob("quantize-*[0-9a-f]")
    assert not (made / "denoiser").exists()  # other tools' formats are theirs; nothing pickled
    benchmark = open_run(validate(compose_config(overrides)))
    assert benchmark.stage("quantize").cached
    again = quantized_denoiser(benchmark)
    record = json.loads((made / "peer.json").read_text())
    assert tensors_digest(again) == record["digest"]
    (made / "peer.json").write_text(json.dumps({**record, "digest": "another"}))
    with pytest.raises(PipelineError, match="made another model"):
        quantized_denoiser(open_run(validate(compose_config(overrides))))
