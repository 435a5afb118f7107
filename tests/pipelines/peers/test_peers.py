"""Other people's tools on the tiny denoiser; skipped where they are not installed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from torch import nn

from segquant import PRECISIONS, layer_errors, model_weight_bytes, output_error
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.peers import tensors_digest
from segquant_bench.pipelines.peers.peer import branch_rank
from segquant_bench.pipelines.runtime.health import files_of
from tests.pipelines.conftest import Command, Tiny, compose_config
from tests.pipelines.peers.support import BATCHES, CAN, FP4, HELD_OUT, Rounded, mean, peer

PAIRS = [(name, precision) for name, able in CAN.items() for precision in able]


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
    assert 0.4 < mean(errors) / mean(plain) < 1.5
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
    assert mean(found[1]) < 0.95 * mean(found[0])  # its own default does not clip


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
    stage = json.loads((made / "stage.json").read_text())  # else the cache would compute it again
    (made / "stage.json").write_text(json.dumps({**stage, "files": files_of(made)}))
    with pytest.raises(PipelineError, match="made another model"):
        quantized_denoiser(open_run(validate(compose_config(overrides))))
