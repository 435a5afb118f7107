"""The plug-in: files that no stock call can read, and folders that would be half of one."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import segquant
from segquant import QuantizationError, presets

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
from segquant.deploy.diffusers import SegQuantConfig  # noqa: E402
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


def test_a_quantized_text_encoder_is_refused_before_the_first_part(model: nn.Module, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=8, projection_dim=16, **size)).eval()
    segquant.quantize_(encoder, presets.rtn("w8a8_dynamic"), [(torch.zeros(1, 4, dtype=torch.long),)])
    found = pipeline(model)
    found.register_modules(text_encoder_3=encoder)
    with pytest.raises(
        QuantizationError, match="does not know the quantized layers of this CLIPTextModel.*themselves$"
    ):
        found.save_pretrained(tmp_path / "pipe")
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


WRITERS: dict[str, Any] = {
    "save_quantized": segquant.save_quantized,
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="20KB"),
}


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def zeroed(folder: Path) -> None:
    """The last bytes of the last file."""
    whole = files(folder)[-1].read_bytes()
    files(folder)[-1].write_bytes(whole[:-500] + bytes(500))


def rewritten(folder: Path, change: Callable[[str, Tensor], Tensor], keep: bool = True) -> None:
    """As another tool does, with or without what the header says."""
    for file in files(folder):
        with safetensors.safe_open(file, "pt") as opened:
            told = opened.metadata() if keep else {"format": "pt"}
        save_file({name: change(name, t).contiguous() for name, t in load_file(file).items()}, file, told)


@pytest.mark.parametrize("writer", WRITERS)
def test_damaged_weights_of_the_right_size(model: nn.Module, tmp_path: Path, writer: str) -> None:
    folder = tmp_path / "m"
    WRITERS[writer](model, folder)
    zeroed(folder)
    with pytest.raises(QuantizationError, match="m are damaged: their SHA-256 is not the one"):
        read(folder)
    rewritten(folder, lambda name, t: t * torch.nan if name.endswith("q.weight_scale") else t, keep=False)
    with pytest.raises(QuantizationError, match=r"to_q.weight_scale holds NaN or infinities"):
        read(folder)


@pytest.mark.parametrize("keep", [True, False])
def test_files_of_other_tools_are_not_taken_for_damaged(model: nn.Module, tmp_path: Path, keep: bool) -> None:
    """In shards of another size, with the header's metadata or without, with biases of another dtype."""
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    (tmp_path / "one").mkdir()
    tensors: dict[str, Tensor] = {}
    for file in files(tmp_path / "m"):
        with safetensors.safe_open(file, "pt") as opened:
            told = opened.metadata() if keep else None
        tensors |= load_file(file)
    save_file(tensors, tmp_path / "one" / "diffusion_pytorch_model.safetensors", told)
    shutil.copy(tmp_path / "m" / "config.json", tmp_path / "one")
    assert torch.equal(out(read(tmp_path / "one")), out(model))
    rewritten(tmp_path / "m", lambda name, t: t.half() if name.endswith(".bias") else t, keep)
    assert torch.allclose(out(read(tmp_path / "m", torch_dtype=torch.float32)), out(model), atol=1e-2)


def test_two_variants_in_one_folder(model: nn.Module, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    other.proj_out.bias.data += 1
    model.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path, variant="other")
    assert torch.equal(out(read(tmp_path)), out(model))
    assert torch.equal(out(read(tmp_path, variant="other")), out(other))


def test_files_of_two_models_are_not_mixed(model: nn.Module, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    other.transformer_blocks[0].attn.to_q.weight_scale.mul_(2)
    for name, each in (("m", model), ("n", other)):
        each.save_pretrained(tmp_path / name, max_shard_size="20KB")
    shutil.copy(files(tmp_path / "n")[0], tmp_path / "m")
    with pytest.raises(QuantizationError, match="the files in .*m are of several models"):
        read(tmp_path / "m")


@pytest.mark.parametrize("given", [{}, {"quantization_config": SegQuantConfig("rtn", "w8a8_dynamic")}])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_config_that_lost_its_part_never_gives_random_weights(
    model: nn.Module, tmp_path: Path, writer: str, given: dict[str, Any]
) -> None:
    WRITERS[writer](model, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    for load in (read, diffusers.AutoModel.from_pretrained):
        with pytest.raises(QuantizationError, match="m has quantized weights of .* layers .*no quantization_config"):
            load(tmp_path / "m", **given)


@pytest.mark.parametrize("precision", ["nvfp4", "mxfp6", "q5_1", "w4a8_asym"])
def test_names_of_every_kind_of_scale_are_known(tmp_path: Path, precision: str) -> None:
    model = segquant.quantize_(small(), presets.rtn(precision), [inputs(1)])
    test_a_config_that_lost_its_part_never_gives_random_weights(model, tmp_path, "save_pretrained", {})


def test_low_cpu_mem_usage_is_what_the_page_says(model: nn.Module, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    assert torch.equal(out(read(tmp_path / "m", low_cpu_mem_usage=True)), out(model))
    with pytest.raises(ValueError, match="cannot be False or None when using quantization"):
        read(tmp_path / "m", low_cpu_mem_usage=False)


def test_the_same_model_is_saved_in_the_same_bytes(model: nn.Module, tmp_path: Path) -> None:
    """safetensors writes two keys of metadata in an order of chance: eight times alike is one in 128."""
    files = set()
    for number in range(8):
        model.save_pretrained(tmp_path / str(number))
        (path,) = (tmp_path / str(number)).glob("*.safetensors")
        files.add(path.read_bytes())
    assert len(files) == 1
    assert torch.equal(out(read(tmp_path / "7")), out(model))
