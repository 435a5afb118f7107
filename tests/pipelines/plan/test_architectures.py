"""Every shipped architecture, planned on the meta device: counts against a derivation by hand, memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segquant import find_segments
from segquant_bench.pipelines.architectures import architecture, architecture_names, meta_denoiser
from segquant_bench.pipelines.architectures.inputs import Call, evaluate, example_inputs
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.plan.counts import CONV, LINEAR, LayerEntry, count_rows, layer_entries
from tests.pipelines.architecture_counts import CASES, Counts

BYTES = 2e9
QUICK = ("sd3_medium", "sd3_controlnet", "flux_controlnet", "pixart_sigma", "sana")
"""Planned whole in every test run; the others only with -m slow, and shallow ones always."""


def _counts(layers: tuple[LayerEntry, ...]) -> Counts:
    linears = [layer for layer in layers if layer.kind == LINEAR]
    found = [layer.segments for layer in linears]
    return Counts(
        len(linears),
        sum(torch.Size(layer.shape).numel() for layer in linears),
        sum(layer.kind == CONV for layer in layers),
        Counter(cut.output for cut in found if cut.output),
        Counter(cut.input for cut in found if cut.input),
        Counter(cut.activation for cut in found if cut.activation),
        Counter(name for cut in found if not cut.activation for name in cut.input_activations or () if name),
        Counter(layer.segments.input for layer in layers if layer.kind == CONV and layer.segments.input),
    )


def _peak() -> int:
    """Most bytes that this process has had resident since `_reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def test_every_shipped_architecture_is_here() -> None:
    assert set(CASES) == set(architecture_names())


@pytest.mark.parametrize("name", CASES)
def test_a_shallow_one_is_cut_as_derived(name: str) -> None:
    case = CASES[name]
    model, inputs = meta_denoiser(name, **case.changes)
    layers = layer_entries(model, find_segments(model, kwargs=inputs), count_rows(model, inputs))
    assert _counts(layers) == case.shallow
    assert all(layer.rows for layer in layers), "every layer is called"


def _full(name: str) -> Any:
    marks = [pytest.mark.slow] * (name not in QUICK)
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", map(_full, CASES))
def test_full_size_is_cut_as_derived_in_2_gigabytes(name: str) -> None:
    """The seconds are those of benchmarks/plan_cost.py."""
    architecture(name)  # imports diffusers, whose memory is not the plan's
    before = _reset_peak()
    model, inputs = meta_denoiser(name)
    layers = layer_entries(model, find_segments(model, kwargs=inputs), count_rows(model, inputs))
    assert _counts(layers) == CASES[name].full
    assert all(parameter.is_meta for parameter in model.parameters())
    assert _peak() - before < BYTES


def test_the_arguments_follow_a_change() -> None:
    _, inputs = meta_denoiser("flux1_dev", num_layers=1, num_single_layers=1, guidance_embeds=False, in_channels=16)
    assert "guidance" not in inputs and inputs["hidden_states"].shape == (1, 4096, 16)
    _, inputs = meta_denoiser("sdxl_turbo", transformer_layers_per_block=(1, 1, 1))
    assert inputs["sample"].shape == (1, 4, 64, 64) and inputs["added_cond_kwargs"]["text_embeds"].shape == (1, 1280)


def test_a_unet_without_added_conditions_gets_none() -> None:
    inputs = example_inputs(
        "UNet2DConditionModel",
        {"in_channels": 4, "sample_size": 64, "cross_attention_dim": 768, "addition_embed_type": None},
    )
    assert set(inputs) == {"sample", "timestep", "encoder_hidden_states"}


def test_the_arguments_follow_the_pipelines_call() -> None:
    """A prompt of SD3 is CLIP's tokens and then T5's, of which there may be none; Flux packs 2 × 2 latents."""
    config = {"in_channels": 16, "sample_size": 128, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    default = example_inputs("SD3Transformer2DModel", config)
    assert default["hidden_states"].shape == (1, 16, 128, 128) and default["encoder_hidden_states"].shape[1] == 77 + 256
    call = Call(height=64, width=128, max_sequence_length=0, tokenizer_length=16, vae_scale=4)
    inputs = example_inputs("SD3Transformer2DModel", config, call=call)
    assert inputs["hidden_states"].shape == (1, 16, 16, 32) and inputs["encoder_hidden_states"].shape[1] == 16
    flux = {**config, "guidance_embeds": False}
    inputs = example_inputs("FluxTransformer2DModel", flux, call=Call(height=64, width=128, max_sequence_length=12))
    assert inputs["hidden_states"].shape == (1, 4 * 8, 16) and inputs["img_ids"].shape == (4 * 8, 3)
    assert inputs["encoder_hidden_states"].shape[1] == 12


def test_rows_are_those_of_a_real_call() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.Flatten(2), nn.Linear(16, 5), nn.Linear(5, 5))
    model[3].forward = lambda x: x  # called, but on rows of its own
    inputs = {"input": torch.zeros(2, 3, 8, 8)}
    assert count_rows(model, inputs) == {"0": 2 * 16, "2": 2 * 8, "3": 2 * 8}


def test_bad_names_and_changes() -> None:
    with pytest.raises(PipelineError, match="no configuration of 'flux_dev' is shipped; did you mean 'flux1_dev'"):
        architecture("flux_dev")
    with pytest.raises(PipelineError, match="FluxTransformer2DModel takes no 'num_layer'; did you mean 'num_layers'"):
        architecture("flux1_dev", num_layer=2)
    with pytest.raises(PipelineError, match="HunyuanDiT2DModel is not known .*model.inputs"):
        example_inputs("HunyuanDiT2DModel", {})
    with pytest.raises(PipelineError, match="SD3Transformer2DModel do not follow .* no 'sample_size' in it"):
        example_inputs("SD3Transformer2DModel", {"in_channels": 4})


@pytest.mark.parametrize("expression", ["open('x')", "a.b", "a ** 2", "a if a else 1"])
def test_expressions_are_sums_and_products_only(expression: str) -> None:
    assert evaluate("2 * a - 1 // 2", {"a": 3}) == 6 and evaluate("a == 'x'", {"a": "x"}) is True
    with pytest.raises(ValueError, match="no sum, product or comparison"):
        evaluate(expression, {"a": 3})
