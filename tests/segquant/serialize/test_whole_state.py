"""What a reload needs beyond the state dict: dtypes, buffers that are not stored, memory formats, hooks, pipelines."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segquant import QuantizationError, load_quantized, presets, quantize_, save_quantized
from tests.segquant.support import tensor

accelerate = pytest.importorskip("accelerate")
CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "there and back": lambda model: model.to(torch.bfloat16).float(),
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
}
each_cast = pytest.mark.parametrize("cast", CASTS)


class Net(nn.Module):
    """A table outside the state dict, shared; a grouped and a skipped convolution, which stay float."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.deep = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.proj, self.bare, self.kept = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Conv2d(8, 4, 3)
        table = torch.linspace(-1, 1, 8 * 36).view(36, 8).sin()
        self.register_buffer("table", table, persistent=False)
        self.other = nn.Identity()
        self.other.register_buffer("again", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.first(x.to(self.proj.weight.dtype)))
        rows = x.flatten(2).transpose(1, 2) + self.table
        return self.kept(self.bare(self.proj(rows)).transpose(1, 2).unflatten(2, (6, 6)))


METHOD = presets.rtn("w8a8_tensor", convolutions=True, skip=["kept"])


def quantized(cast: Callable[[nn.Module], nn.Module] = lambda model: model, before: bool = False) -> nn.Module:
    model = cast(Net()) if before else Net()
    quantize_(model.eval(), METHOD, [(tensor(2, 4, 6, 6, seed=s),) for s in range(3)])
    return model if before else cast(model)


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(tensor(2, 4, 6, 6, seed=9))


@each_cast
@pytest.mark.parametrize("before", [True, False])
def test_a_cast_model_is_loaded_bit_for_bit(cast: str, before: bool, tmp_path: Path) -> None:
    model = quantized(CASTS[cast], before)
    save_quantized(model, tmp_path / "model")
    again = load_quantized(tmp_path / "model", Net())
    assert torch.equal(out(again), out(model))
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()) and torch.equal(a, b), name
    for (name, a), b in zip(model.named_buffers(), again.buffers(), strict=True):
        assert (a.dtype, a.stride()) == (b.dtype, b.stride()) and torch.equal(a, b), name
    assert again.state_dict().keys() == model.state_dict().keys() and (again.table is again.other.again) == (
        model.table is model.other.again
    )
    for layer in ("proj", "bare", "first"):
        assert getattr(again, layer).weight.dtype == getattr(model, layer).weight.dtype


@each_cast
def test_a_loaded_model_is_cast_as_the_saved_one_is(cast: str, tmp_path: Path) -> None:
    model = quantized()
    save_quantized(model, tmp_path / "model")
    again = load_quantized(tmp_path / "model", Net())
    assert torch.equal(out(CASTS[cast](again)), out(CASTS[cast](model)))


def test_a_table_that_no_file_holds_comes_out_of_the_saved_one(tmp_path: Path) -> None:
    model = quantized()
    save_quantized(model, tmp_path / "model")
    with torch.device("meta"):
        empty = Net()
    assert torch.equal(out(load_quantized(tmp_path / "model", empty)), out(model))

    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.table
            self.table = torch.zeros(())

    with pytest.raises(QuantizationError, match="has no place for the buffer table"):
        load_quantized(tmp_path / "model", Other())


def test_what_the_first_versions_did_not_write_is_taken_from_what_is_there(tmp_path: Path) -> None:
    model = quantized(CASTS["bfloat16"])
    folder = save_quantized(model, tmp_path / "model")
    manifest = json.loads((folder / "quantized.json").read_text())
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "quantized.safetensors")
    for name in manifest.pop("outside"):
        tensors.pop(name, None)
    manifest["aliases"] = {}
    del manifest["strides"], manifest["sha256"]
    for entry in manifest["layers"].values():
        del entry["dtype"]
    save_file(tensors, folder / "quantized.safetensors")
    manifest["bytes"] = (folder / "quantized.safetensors").stat().st_size
    (folder / "quantized.json").write_text(json.dumps(manifest))
    again = load_quantized(folder, Net())
    assert again.bare.weight.dtype == torch.bfloat16 and again.table.dtype == torch.float32
    assert torch.equal(out(CASTS["bfloat16"](again)), out(model))


def test_accelerates_hooks_around_the_whole_model(tmp_path: Path) -> None:
    from accelerate.hooks import CpuOffload, add_hook_to_module

    plain, model = quantized(), add_hook_to_module(Net().eval(), CpuOffload("cpu"))
    quantize_(model, METHOD, [(tensor(2, 4, 6, 6, seed=s),) for s in range(3)])
    assert torch.equal(out(model), out(plain))
    save_quantized(model, tmp_path / "model")
    assert torch.equal(out(load_quantized(tmp_path / "model", Net())), out(plain))
    target = add_hook_to_module(Net(), CpuOffload("cpu"))
    assert torch.equal(out(load_quantized(tmp_path / "model", target)), out(plain))


@pytest.mark.parametrize("buffers", [True, False])
def test_accelerates_hooks_on_every_layer(buffers: bool, tmp_path: Path) -> None:
    model = quantized()
    exact = out(model)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device="cpu", offload_buffers=buffers)
    assert torch.equal(out(offloaded), exact) and torch.equal(out(offloaded), exact)
    with pytest.raises(QuantizationError, match=r"has no values .*remove_hook_from_module"):
        save_quantized(offloaded, tmp_path / "model")
    accelerate.hooks.remove_hook_from_module(offloaded, recurse=True)
    save_quantized(offloaded, tmp_path / "model")
    assert torch.equal(out(load_quantized(tmp_path / "model", Net())), exact)
    with pytest.raises(
        QuantizationError, match=r"'first' \(Conv2d\) has a hook of accelerate.*remove_hook_from_module"
    ):
        quantize_(accelerate.cpu_offload(Net(), execution_device="cpu"), METHOD, [])


class Pretrained(Net):
    """As of diffusers and transformers."""

    def save_pretrained(self, folder: str, safe_serialization: bool = True) -> None:
        torch.save(self.state_dict(), folder)


def test_save_pretrained_is_refused_at_the_model_and_inside(tmp_path: Path) -> None:
    inner, outer = Pretrained().eval(), nn.Sequential()
    outer.add_module("part", inner)
    inner.save_pretrained(str(tmp_path / "float"))
    data = [(tensor(2, 4, 6, 6, seed=s),) for s in range(3)]
    quantize_(outer, METHOD.changed(skip=["part.kept"]), data)
    loaded = load_quantized(save_quantized(inner, tmp_path / "model"), Pretrained())
    for model in (inner, copy.deepcopy(inner), loaded):
        with pytest.raises(QuantizationError, match=r"random weights; save it by segquant.save_quantized\(model"):
            model.save_pretrained(str(tmp_path / "quantized"))
    assert not (tmp_path / "quantized").exists()
