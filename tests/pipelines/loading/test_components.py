"""Components that wait in main memory: the same run as without, and on the device only what runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import segquant
import segquant_bench.pipelines.loading.components
from segquant.graph.capture.copies import example_copy, with_values
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.components import DeviceHook, DeviceSlot, hook_of
from segquant_bench.pipelines.loading.models import load_pipeline
from segquant_bench.pipelines.stages.benchmark import open_run, run_all
from segquant_bench.pipelines.stages.shared import quantized
from segquant_bench.pipelines.stages.shared.quantized import in_place, twin
from tests.pipelines.conftest import Tiny, compose_config
from tests.tiny_families import tiny_family

DATASET = ["dataset=tiny", "dataset.archive=somewhere"]


def _family(name: str, tiny: Tiny, folder: Path) -> list[str]:
    run = [value for value in tiny.overrides(folder) if not value.startswith(("model", "cache"))]
    return [*tiny_family(name, folder), *run, "model.embeddings=live"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (None, ["quantizer=smoothquant", "quantize=[denoiser,text_encoder]", "correction=affine"]),
        (None, ["quantizer=rtn", "calibration=loss", "model.embeddings=cached"]),
        ("sd3_canny", ["quantizer=segquant_g", "quantizer.alpha=0.5", "quantize=[denoiser,controlnet]"]),
    ],
)
def test_a_run_whose_components_wait(name: str | None, more: list[str], tiny: Tiny, tmp_path: Path) -> None:
    base = tiny.overrides(tmp_path) if name is None else _family(name, tiny, tmp_path)
    runs = {}
    for offload in ("none", "components"):
        overrides = [*base, f"cache={tmp_path / offload}", *more, f"model.offload={offload}", "dataset.size=2"]
        run = open_run(validate(compose_config(overrides)))
        run_all(run)
        runs[offload] = run
    one, other = runs["none"], runs["components"]
    assert hook_of(one.denoiser) is None and hook_of(other.denoiser) is not None
    for stage in {"quantize", "reference", "generate", "components", "correct"} & one.finished.keys():
        files = [file for file in sorted(one.finished[stage].path.rglob("*")) if file.is_file()]
        for file in files:
            same = other.finished[stage].path / file.relative_to(one.finished[stage].path)
            assert file.name == "stage.json" or file.read_bytes() == same.read_bytes(), file
    errors = json.loads((other.finished["quantize"].path / "errors.json").read_text())
    assert 0 < errors["output_error"] < 1 and len(errors["layer_errors"]) > 4


class Placed(nn.Module):
    """A component that remembers where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.place = "cpu"

    def to(self, device: Any) -> Placed:
        self.place = str(device)
        return self

    def forward(self) -> str:
        return self.place


class Coder(Placed):
    """One that decodes."""

    def decode(self) -> str:
        self._hf_hook.pre_forward(self)  # as diffusers' `apply_forward_hook` does
        return self.place


def test_one_group_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segquant_bench.pipelines.loading.components, "empty_cache", lambda device: None)
    residence = DeviceSlot("cuda")
    text, denoiser, controlnet, coder = Placed(), Placed(), Placed(), Coder()
    for module, group in ((text, "text"), (denoiser, "step"), (controlnet, "step"), (coder, "vae")):
        DeviceHook(residence, group).attach(module)
    stand_in = copy.deepcopy(denoiser)

    def places() -> list[str]:
        return [module.place for module in (text, denoiser, controlnet, coder, stand_in)]

    assert text() == "cuda" and places() == ["cuda", "cpu", "cpu", "cpu", "cpu"]
    assert denoiser() == controlnet() == "cuda" and places() == ["cpu", "cuda", "cuda", "cpu", "cpu"]
    assert stand_in() == "cuda" and places() == ["cpu", "cuda", "cuda", "cpu", "cuda"]
    assert coder.decode() == "cuda" and places() == ["cpu", "cpu", "cpu", "cuda", "cpu"]
    assert stand_in() == "cuda" and places() == ["cpu", "cpu", "cpu", "cpu", "cuda"]


def _watched(pipeline: Any, modules: dict[str, nn.Module]) -> list[tuple[str, set[str]]]:
    """Which of `modules` ran, and which were on the device then, in order of their first calls."""
    seen: list[tuple[str, set[str]]] = []
    residence = hook_of(pipeline.vae).slot

    def note(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            found = (name, {key for key, module in modules.items() if module in residence.present})
            if found not in seen:
                seen.append(found)

        return hook

    for name, module in modules.items():
        if name != "vae":
            module.register_forward_pre_hook(note(name))
    pipeline.vae.decoder.register_forward_pre_hook(note("vae"))
    return seen


def test_a_quantized_denoiser_comes_and_goes_like_the_one_it_replaces(tiny: Tiny, tmp_path: Path) -> None:
    config = validate(compose_config([*tiny.overrides(tmp_path), "model.offload=components"])).model
    pipeline = load_pipeline(config, tiny.model)
    assert type(pipeline).__name__ == "StableDiffusion3Pipeline"
    exact = pipeline.transformer
    own = segquant.quantize_(twin(exact), segquant.presets.rtn("w8a8_dynamic"), [])
    assert type(own) is type(exact) and hook_of(own) is hook_of(exact)
    segquant.save_quantized(own, tmp_path / "denoiser")
    loaded = segquant.load_quantized(tmp_path / "denoiser")
    assert hook_of(loaded) is None
    names = ("text_encoder", "text_encoder_2", "vae")
    seen = _watched(pipeline, {**{n: getattr(pipeline, n) for n in names}, "exact": exact, "quantized": loaded})
    call = config.call.arguments()
    with in_place(pipeline, {"transformer": loaded}):
        pipeline(prompt=["a"], output_type="np", **call)
    order = ["text_encoder", "text_encoder_2", "quantized", "vae"]
    assert seen == [(name, {name}) for name in order]
    assert pipeline.transformer is exact and loaded not in hook_of(exact).slot.present
    pipeline(prompt=["a"], output_type="np", **call)
    assert seen[len(order) :] == [("exact", {"exact"})]


def test_denoiser_and_controlnet_stay_together(tiny: Tiny, tmp_path: Path) -> None:
    overrides = [*_family("sd3_canny", tiny, tmp_path), "model.offload=components"]
    config = validate(compose_config(overrides)).model
    pipeline = load_pipeline(config, tmp_path / "pipeline")
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    seen = _watched(pipeline, modules)
    pipeline(prompt=["a"], control_image=torch.zeros(1, 3, 32, 32), output_type="np", **config.call.arguments())
    there = dict(seen)
    assert there["transformer"] == {"transformer", "controlnet"} and there["vae"] == {"vae"}
    assert there["text_encoder_3"] == {"text_encoder_3"}


def test_a_copy_takes_the_device_for_itself(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(compose_config([*tiny.overrides(tmp_path), "model.offload=components"])).model
    denoiser = load_pipeline(config, tiny.model).transformer
    residence = hook_of(denoiser).slot
    residence.enter(denoiser, hook_of(denoiser).group)
    copied = twin(denoiser)
    assert set(residence.present) == {copied}
    for (name, one), (_, other) in zip(denoiser.named_parameters(), copied.named_parameters(), strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr(), name
    monkeypatch.setattr(quantized, "free_bytes", lambda device: 1000)
    with pytest.raises(PipelineError, match=r"a copy of SD3Transformer2DModel, .* on cpu; use model.offload=blocks"):
        twin(denoiser)


def test_the_graph_of_a_denoiser_with_hooks_of_accelerate(tiny: Tiny, tmp_path: Path) -> None:
    """A library's user may have called enable_model_cpu_offload: the hooks stay, and are no part of the graph."""
    config = validate(compose_config(tiny.overrides(tmp_path))).model
    pipeline = load_pipeline(config, tiny.model)
    denoiser = pipeline.transformer
    width, pooled = denoiser.config.joint_attention_dim, denoiser.config.pooled_projection_dim
    inputs = {
        "hidden_states": torch.randn(2, denoiser.config.in_channels, 8, 8),
        "encoder_hidden_states": torch.randn(2, 4, width),
        "pooled_projections": torch.randn(2, pooled),
        "timestep": torch.tensor([1.0, 500.0]),
    }
    expected = segquant.find_segments(denoiser, (), inputs)
    _, before = cpu_offload_with_hook(pipeline.text_encoder, "cpu")
    cpu_offload_with_hook(denoiser, "cpu", prev_module_hook=before)
    hook, forward = denoiser._hf_hook, denoiser.forward
    assert segquant.find_segments(denoiser, (), inputs) == expected
    assert denoiser._hf_hook is hook and denoiser.forward is forward


def test_arguments_come_to_the_weights() -> None:
    """An off-loaded model waits in main memory while what it is to be called with lies on its device already."""
    function = with_values(FakeTensorMode(), torch.device("meta"))
    _, given = example_copy((), {"x": torch.zeros(3, 4)}, function)
    assert given["x"].device.type == "meta" and given["x"].shape == (3, 4)
