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

from segquant import PRECISIONS, layer_errors, model_weight_bytes, output_error, presets, quantize_
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
    "quanto": ("w8a8", "fp8", "w4a16"),
    "sdnq": ("w8a8_dynamic", "w4a8_channel", "w4a8", "w4a16"),
}
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


Rounded = Callable[[str, str], dict[str, float]]


@pytest.fixture(scope="module")
def ours(model: nn.Module) -> Rounded:
    """Layer errors of a preset of this project at a precision."""

    @functools.cache
    def errors(preset: str, precision: str) -> dict[str, float]:
        options = {"alpha": 0.5} if preset == "smoothquant" else {}
        method = getattr(presets, preset)(precision, **options)
        return layer_errors(model, quantize_(copy.deepcopy(model), method, BATCHES), HELD_OUT)

    return errors


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
    assert 0.4 < _mean(errors) / _mean(ours(preset, precision)) < 1.5
    assert 0 < output_error(model, quantized, HELD_OUT) < 0.25
    share = tool.weight_bytes(quantized, names) / model_weight_bytes(model)
    assert (0.15 < share < 0.33) if precision.startswith("w4") else (0.25 < share < 0.45)
    json.dumps(tool.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "precision", "preset", "tolerance"),
    [
        ("modelopt_int8", "w8a8_tensor", "rtn", 0.01),
        ("modelopt_int8", "w8a8_dynamic", "rtn", 0.01),
        ("modelopt_smoothquant", "w8a8", "smoothquant", 0.01),
        ("torchao_int8_static", "w8a8", "rtn", 0.15),  # its scales take 255 steps where others take 254
        ("torchao_int8_dynamic", "w8a8_dynamic", "rtn", 0.15),
    ],
)
def test_the_same_method_gives_the_same_error_in_every_layer(
    model: nn.Module, ours: Rounded, name: str, precision: str, preset: str, tolerance: float
) -> None:
    tool = peer(name, precision)
    quantized = tool.quantize_(copy.deepcopy(model), BATCHES)
    errors = layer_errors(model, quantized, HELD_OUT, tool.layers(model))
    assert errors == pytest.approx(ours(preset, precision), rel=tolerance)


@pytest.mark.parametrize(("name", "precision"), [("modelopt_int8", "w8a8"), ("sdnq", "w4a8"), ("quanto", "w4a16")])
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
    peer("torchao_int8_static", "w8a8", skip=["unused"]).quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match=r"quantizer\.skip: 'unusd' matches none of the model's \d linears"):
        peer("torchao_int8_static", "w8a8", skip=["unused", "unusd"]).quantize_(Branched().eval(), batches)


def test_inputs_of_two_shapes_are_named() -> None:
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    batches = [(torch.randn(2, 64),), (torch.randn(2, 3, 64),)]
    with pytest.raises(PipelineError, match=r"0 sees \[2, 3\] axes"):
        peer("torchao_int8_static", "w8a8").quantize_(model, batches)


def test_one_rank_for_the_whole_model() -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 256), nn.Linear(2048, 2048), nn.Linear(32, 32))
    assert branch_rank(model, "0123", None) == 8
    assert branch_rank(model, "0123", 5) == 5


def test_a_run_and_its_model_made_again(command: Command, tiny: Tiny, cache: Path) -> None:
    from segquant_bench.pipelines.stages.benchmark import open_run
    from segquant_bench.pipelines.stages.quantize import quantized_denoiser

    peer("torchao_int8_static", "w8a8")
    overrides = [*tiny.overrides(cache), "quantizer=torchao_int8_static", "precision=w8a8"]
    outcome = command(*overrides)
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    assert (results["quantizer"], results["precision"]) == ("torchao_int8_static", "w8a8")
    assert results["versions"]["torchao"] and results["weight_bytes"] < 0.4 * results["weight_bytes_float"]
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
