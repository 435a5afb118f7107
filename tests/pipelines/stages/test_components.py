"""Quantized text encoders, from their inputs to the run's results; and nothing changes without them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from segquant import Method, QuantLinear, presets, save_quantized
from segquant_bench.eval import load_result
from segquant_bench.eval.paper.layers import layer_sheets, layers_csv
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.report.runs.labels import labels
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.models import load_pipeline, read_index
from segquant_bench.pipelines.sampling.samples import Batches, Sample
from segquant_bench.pipelines.stages.benchmark import open_run
from segquant_bench.pipelines.stages.components.graphs import component_segments
from segquant_bench.pipelines.stages.components.methods import check_components, component_method
from segquant_bench.pipelines.stages.components.quantize import load_component, quantize_component
from segquant_bench.pipelines.stages.components.text_inputs import text_inputs
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared.quantized import component_errors, in_place
from tests.pipelines.conftest import Command, Tiny, compose_config
from tests.tiny import tiny_text_encoder

BOTH = "quantize=[denoiser,text_encoder]"
METHOD = presets.segquant_g("w8a8_tensor")


def _t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=80, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def _encoder(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_text_encoder(32) if kind == "clip" else _t5()


def _texts(count: int, seed: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 78, (count, 1, 16), generator=generator)
    return [Sample(i, 0, {"input_ids": ids[i]}, {}, {"output_hidden_states": True}) for i in range(count)]


def _quantized(name: str, encoder: nn.Module, method: Method, batches: Batches) -> nn.Module:
    segments = component_segments(name, encoder, batches) if method.cuts.wants_graph else {}
    return quantize_component(name, encoder, method, batches, segments)[0]


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_encoders_of_transformers_are_captured_quantized_stored_and_read(kind: str, tmp_path: Path) -> None:
    encoder, held_out = _encoder(kind), _texts(3, seed=1)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    quantized = _quantized("text_encoder", encoder, METHOD, Batches(_texts(8, seed=0), 4))
    linears = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    assert all(isinstance(quantized.get_submodule(name), QuantLinear) for name in linears)
    heads = [name for name in linears if name.endswith(("out_proj", "SelfAttention.o"))]
    assert all(len(quantized.get_submodule(name).layout.columns) == 2 for name in heads)  # a segment per head
    errors = component_errors("text_encoder", encoder, quantized, held_out, 2, "cpu")
    assert errors["layer_errors"].keys() == {f"text_encoder.{name}" for name in linears}
    assert 0 < errors["output_error"] < 0.1 and errors["weight_bytes"] < errors["weight_bytes_float"]
    save_quantized(quantized, tmp_path / "encoder")
    loaded = load_component(tmp_path / "encoder", encoder)
    for batch in Batches(held_out, 3):
        with torch.no_grad():
            ours, theirs, exact = loaded(**batch), quantized(**batch), encoder(**batch)
        assert torch.equal(ours.hidden_states[-2], theirs.hidden_states[-2]) and torch.equal(ours[0], theirs[0])
        assert not torch.equal(ours[0], exact[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


class _Shy(nn.Module):
    """It does not run where somebody records its operators."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(80, 16), nn.Linear(16, 16)

    def forward(self, input_ids: torch.Tensor, output_hidden_states: bool = True) -> torch.Tensor:
        hidden = self.linear(self.embed(input_ids))
        if torch._C._len_torch_dispatch_stack():
            raise RuntimeError("not to be recorded")
        return hidden


def test_an_encoder_without_a_readable_graph_says_what_to_switch_off() -> None:
    batches = Batches(_texts(4, seed=0), 2)
    with pytest.raises(
        PipelineError, match=r"\+components.text_encoder_2.seglinear=false \+components.text_encoder_2.dual"
    ):
        _quantized("text_encoder_2", _Shy(), METHOD, batches)
    plain = METHOD.changed(seglinear=False, dualscale=False)
    assert isinstance(_quantized("text_encoder_2", _Shy(), plain, batches).linear, QuantLinear)
    odd = presets.rtn("w4a4")
    with pytest.raises(PipelineError, match=r"text encoder 'text_encoder_2': .*\+components.text_encoder_2.KEY"):
        _quantized("text_encoder_2", _Shy(), odd, batches)


@pytest.fixture(scope="module")
def pipeline(tiny: Tiny):
    return load_pipeline(validate(compose_config(tiny.overrides(tiny.model))).model, tiny.model)


def test_inputs_are_the_token_ids_of_prompts_and_negative_prompts(pipeline) -> None:
    call = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32, "max_sequence_length": 0}
    names, prompts = ["text_encoder", "text_encoder_2"], ["red circle", "blue ring"]
    found = text_inputs(pipeline, pipeline.transformer, names, prompts, call, seed=0, stream=1)
    assert list(found) == names
    for name, tokenizer in zip(names, (pipeline.tokenizer, pipeline.tokenizer_2), strict=True):
        assert [(sample.prompt, sample.step) for sample in found[name]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        texts = [prompts[0], "", prompts[1], ""]
        wanted = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
        assert torch.equal(torch.cat([sample.rows["input_ids"] for sample in found[name]]), wanted)
    assert not any(module._forward_pre_hooks for module in (pipeline.transformer, pipeline.text_encoder))
    alone = text_inputs(
        pipeline, pipeline.transformer, names[:1], prompts, call | {"guidance_scale": 1.0}, seed=0, stream=1
    )
    assert len(alone["text_encoder"]) == 2
    with pytest.raises(PipelineError, match="never calls the forward of its vae"):
        text_inputs(pipeline, pipeline.transformer, ["vae"], prompts, call, seed=0, stream=1)
    with pytest.raises(PipelineError, match="no prompts"):
        text_inputs(pipeline, pipeline.transformer, names, [], call, seed=0, stream=1)


def test_components_are_put_back_after_an_error(pipeline) -> None:
    original, other = pipeline.text_encoder, nn.Linear(1, 1)
    with pytest.raises(KeyboardInterrupt), in_place(pipeline, {"text_encoder": other}):
        assert pipeline.text_encoder is other
        raise KeyboardInterrupt
    assert pipeline.text_encoder is original


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text_encoder_4", "StableDiffusion3Pipeline does not have; did you mean 'text_encoder"),
        ("text_encoder_3", "is empty in this StableDiffusion3Pipeline"),
        ("vae", "neither text encoder nor ControlNet; here it takes denoiser, text_encoder, text_encoder_2"),
        ("_class_name", "does not have"),
    ],
)
def test_names_that_are_no_text_encoders(tiny: Tiny, name: str, words: str) -> None:
    check_components(read_index(tiny.model), ["text_encoder", "text_encoder_2"])
    with pytest.raises(PipelineError, match=words):
        check_components(read_index(tiny.model), ["text_encoder", name])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["quantize=[]"], "must name at least one component.*quantizer=none"),
        (["quantize=[denoiser,text_encoder,text_encoder]"], "each once"),
        (["quantize=[text_encoder]", "correction=affine"], "leaves the denoiser as it is, and correction=affine"),
        (
            ["quantize=[text_encoder]", "quantizer.skip=[a]"],
            r"quantizer.skip names; set \+components.text_encoder.skip",
        ),
        (["quantize=[text_encoder]", "+quantizer.overrides={a: {}}"], "leaves.*quantizer.overrides"),
        (["quantize=[text_encoder]", "quantizer=sdnq", "precision=w8a8_dynamic"], "quantizes the denoiser alone"),
        ([BOTH, "quantizer=torchao_int8_dynamic", "precision=w8a8_dynamic"], "quantizes the denoiser alone"),
        ([BOTH, "quantizer=plan"], "quantizes the denoiser alone"),
        (["+components.text_encoder.seglinear=false"], "components.text_encoder is no component in"),
        ([BOTH, "+components.text_encoder=3"], "components.text_encoder=3 is no setting"),
    ],
)
def test_lists_that_no_run_can_mean(overrides: list[str], words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        build_method(validate(compose_config(overrides)))


def test_an_encoder_has_a_method_of_its_own() -> None:
    def method(*overrides: str) -> Method:
        return component_method(validate(compose_config([BOTH, *overrides])), "text_encoder")

    assert method("quantizer.skip=['*.norm1.linear']") == METHOD
    changed = method("+components.text_encoder={seglinear: false, precision: w8a8}")
    assert changed == presets.segquant_g("w8a8", seglinear=False)
    with pytest.raises(PipelineError, match="text encoder 'text_encoder': .*seglinar.*nearest: seglinear"):
        method("+components.text_encoder.seglinar=false")


def test_hash_and_name_change_only_with_text_encoders() -> None:
    def hashed(*overrides: str) -> tuple[str, str]:
        run = validate(compose_config(list(overrides)))
        return config_hash(run, "model", {}), run.name

    plain, both = hashed(), hashed(BOTH)
    assert plain == hashed("quantize=[denoiser]") and plain[0] != both[0]
    assert (plain[1], both[1]) == ("segquant_g_w8a8_tensor", "segquant_g+text_encoder_w8a8_tensor")
    assert hashed("quantizer=none", BOTH) == hashed("quantizer=none")
    other = hashed("quantize=[text_encoder]")
    assert other[1] == "segquant_g@text_encoder_w8a8_tensor" and other[0] not in (plain[0], both[0])
    three = "quantize=[denoiser,text_encoder,text_encoder_2]"
    assert hashed(three)[0] == hashed("quantize=[denoiser,text_encoder_2,text_encoder]")[0]
    assert hashed(BOTH, "+components.text_encoder.seglinear=false")[0] != both[0]


def _pictures(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


def test_a_run_with_a_text_encoder(command: Command, tiny: Tiny, cache: Path) -> None:
    base = [*tiny.overrides(cache), "quantizer=rtn", "precision=w8a8"]
    assert command(*base, "name=alone").code == 0
    folder = command(*base).folder
    alone, pictures = load_result(folder / "results.json"), _pictures(folder / "images")
    outcome = command(*base, BOTH)
    assert outcome.code == 0, outcome.err
    raw = json.loads((outcome.folder / "results.json").read_text())
    both = load_result(outcome.folder / "results.json")
    alone = dataclasses.replace(alone, path=Path("elsewhere/results.json"))  # both commands wrote into one folder
    assert both.name == "rtn+text_encoder_w8a8" and "components" in both.stages and "components" not in alone.stages
    for stage in ("reference", "calibrate", "graph", "quantize"):
        assert both.stages[stage]["key"] == alone.stages[stage]["key"]
    assert _pictures(outcome.folder / "images") != pictures  # the embeddings are others
    assert _pictures(outcome.folder / "reference") == _pictures(folder / "reference")
    assert both.layer_errors == alone.layer_errors and alone.components == {}
    assert both.components.keys() == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    parts = raw["components"]
    assert parts["transformer"]["weight_bytes"] == raw["weight_bytes"] < raw["weight_bytes_float"]
    assert parts["text_encoder"]["weight_bytes"] < parts["text_encoder"]["weight_bytes_float"]
    assert parts["text_encoder_2"] == dict.fromkeys(
        ("weight_bytes", "weight_bytes_float"), parts["text_encoder"]["weight_bytes_float"]
    )
    errors = parts["text_encoder"]["layer_errors"]
    assert len(errors) == parts["text_encoder"]["layer_error"]["n"] == 13
    assert all(name.startswith("text_encoder.text_") and 0 < error < 0.1 for name, error in errors.items())
    shown = {column.key: column.cell(both) for column in columns([alone, both])}
    assert shown["encoders_mb"].value == sum(parts[f"text_encoder{i}"]["weight_bytes"] for i in ("", "_2")) / 1e6
    assert set(errors) <= {line.split(",")[5] for line in layers_csv([alone, both]).splitlines()}
    (sheet,) = layer_sheets([alone, both])
    assert len(sheet.rows) == len(alone.layer_errors) + len(errors)
    assert labels([alone, both])[id(both)] == "rtn+text_encoder"
    assert not {"encoders_mb", "pipeline_mb"} & {column.key for column in columns([alone])}


def test_a_correction_is_fitted_on_the_trajectory_of_quantized_encoders(tiny: Tiny, cache: Path) -> None:
    def benchmark(*overrides: str) -> Run:
        base = [*tiny.overrides(cache), "quantizer=rtn", "precision=w4a8_channel", "correction=affine"]
        return open_run(validate(compose_config([*base, *overrides])))

    plain, both = benchmark(), benchmark(BOTH)
    folders = [run.stage("correct").path for run in (plain, both)]
    assert plain.stage("quantize").path == both.stage("quantize").path and folders[0] != folders[1]
    values = [(folder / "correction.safetensors").read_bytes() for folder in folders]
    assert values[0] != values[1]
    assert both.pipeline.text_encoder is both.pipeline.components["text_encoder"]
    assert not any(isinstance(module, QuantLinear) for module in both.pipeline.text_encoder.modules())
