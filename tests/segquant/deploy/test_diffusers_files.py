"""The plug-in: files that no stock call can read, and folders that would be half of one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segquant
from segquant import QuantizationError, presets

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
import segquant.deploy.diffusers  # noqa: E402
from tests.segquant.deploy.tiny import inputs, out, small  # noqa: E402

WITHOUT = dict.fromkeys(f"{kind}{of}" for kind in ("text_encoder", "tokenizer") for of in ("", "_2", "_3"))


@pytest.fixture(scope="module")
def made() -> nn.Module:
    method = presets.segquant_a("w8a8_tensor", alpha=0.5, skip=("proj_out",))
    return segquant.quantize_(small(), method, [inputs(1), inputs(2)])


@pytest.fixture
def model(made: nn.Module) -> nn.Module:
    return copy.deepcopy(made)


def read(folder: Path, **kwargs: Any) -> nn.Module:
    return diffusers.SD3Transformer2DModel.from_pretrained(folder, **kwargs)


def adapted(model: nn.Module, beside: str = "to_q") -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=[beside], init_lora_weights=False))
    return model


def pipeline(model: nn.Module) -> Any:
    """Whose vae is written before the transformer."""
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.StableDiffusion3Pipeline(transformer=model, vae=vae, scheduler=scheduler, **WITHOUT)


@pytest.mark.parametrize("beside", ["to_q", "proj_out"])
def test_a_folder_with_adapters_says_who_reads_it(model: nn.Module, tmp_path: Path, beside: str) -> None:
    """Beside a quantized layer and beside one in float."""
    segquant.save_quantized(adapted(model, beside), tmp_path / "m")
    told = rf"an adapter at \S*{beside}, .*as model=, or .*unload_lora_weights"
    for load in (read, segquant.load_quantized):
        with pytest.raises(QuantizationError, match=told):
            load(tmp_path / "m")
    again = segquant.load_quantized(tmp_path / "m", adapted(small(seed=4), beside))
    assert torch.equal(out(again), out(model))


UNSAVEABLE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "adapters": (adapted, {}, "has an adapter, which save_pretrained does not write"),
    "pickle": (lambda model: model, {"safe_serialization": False}, "saved as safetensors alone"),
    "meta": (lambda model: model.to("meta"), {}, "has no values"),
    "compiled": (lambda model: torch.compile(adapted(model), backend="eager"), {}, "has an adapter"),
}


@pytest.mark.parametrize("case", UNSAVEABLE)
def test_a_pipeline_is_refused_before_its_first_part(model: nn.Module, tmp_path: Path, case: str) -> None:
    change, given, told = UNSAVEABLE[case]
    with pytest.raises(QuantizationError, match=told):
        pipeline(change(model)).save_pretrained(tmp_path / "pipe", **given)
    assert not (tmp_path / "pipe").exists()


def test_other_pipelines_are_saved_as_ever(model: nn.Module, tmp_path: Path) -> None:
    for saved in (pipeline(small()), pipeline(model)):
        saved.save_pretrained(tmp_path / "pipe")
        again = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "pipe", **WITHOUT)
        assert torch.equal(out(again.transformer), out(saved.transformer))


def test_half_of_a_folder_is_told_without_the_plug_in(untaught: None, model: nn.Module, tmp_path: Path) -> None:
    segquant.layers.saving.refuse_save_pretrained_(model)
    with pytest.raises(QuantizationError, match=r"pipe holds some parts of the pipeline alone, delete what was"):
        pipeline(model).save_pretrained(tmp_path / "pipe")
    with pytest.raises(QuantizationError, match=r"parts by themselves$"):
        model.save_pretrained(tmp_path / "model")
