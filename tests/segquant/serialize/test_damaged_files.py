"""Tensor files and classes that do not fit a manifest, and states that it cannot hold: one sentence each."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segquant import QuantizationError, load_quantized, presets, quantize_, save_quantized
from segquant.serialize.save import plain
from tests.segquant.serialize.saved_net import Net, X, is_sentence, manifest_of


def _rewritten(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """The tensors changed, with a manifest that knows their size and, as the first versions', no digest."""
    path = folder / "quantized.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    _sized(folder)


def _sized(folder: Path) -> None:
    manifest = manifest_of(folder)
    manifest["bytes"] = (folder / "quantized.safetensors").stat().st_size
    manifest.pop("sha256", None)
    (folder / "quantized.json").write_text(json.dumps(manifest))


def test_one_other_bit_is_noticed(folder: Path) -> None:
    """In the codes it would be another model, which runs."""
    path = folder / "quantized.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(QuantizationError, match="is damaged: its SHA-256 is not the one in quantized.json"):
        load_quantized(folder, Net())
    _sized(folder)
    load_quantized(folder, Net())


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 1000, -1])
def test_truncated_tensors_whose_size_is_right(length: int, folder: Path) -> None:
    path = folder / "quantized.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(QuantizationError, match="truncated"):
        load_quantized(folder, Net())
    _sized(folder)
    with pytest.raises(QuantizationError, match="is damaged .*save or copy it again"):
        load_quantized(folder, Net())


def test_a_header_of_other_bytes(folder: Path) -> None:
    path = folder / "quantized.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole) // 2, 37):
        for byte in (0, 34, 255):
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                load_quantized(folder, Net())
            except BaseException as error:
                assert is_sentence(error), (place, byte, error)


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "codes in floating point": lambda t: t.update({"cut.codes": t["cut.codes"].float()}),
    "codes of other integers": lambda t: t.update({"cut.codes": t["cut.codes"].int()}),
    "scales as integers": lambda t: t.update({"cut.weight_scale": t["cut.weight_scale"].int()}),
    "codes cut": lambda t: t.update({"cut.codes": t["cut.codes"][:2].contiguous()}),
    "no codes": lambda t: t.pop("cut.codes"),
    "no table": lambda t: t.pop("table"),
    "no float weight": lambda t: t.pop("kept.weight"),
    "one too many": lambda t: t.update({"cut.more": torch.zeros(1)}),
    "none": lambda t: t.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit(change: str, folder: Path) -> None:
    _rewritten(folder, CHANGES[change])
    with pytest.raises(
        QuantizationError, match="does not fit this model|is damaged: .*; save the model again"
    ) as caught:
        load_quantized(folder, Net())
    assert is_sentence(caught.value)


def test_a_convolution_of_another_form_does_not_fit(folder: Path) -> None:
    net = Net()
    net.conv = nn.Conv2d(2, 3, (2, 3), padding=1)
    with pytest.raises(QuantizationError, match=r"'conv' .*its kernel \(3, 2\) is not the model's \(2, 3\)"):
        load_quantized(folder, net)


CLASSES = [
    ("os", "system"), ("diffusersx", "Model"), ("diffusers\0", "Model"), ("diffusers.no_such", "Model"),
    ("diffusers..models", "Model"), ("torch.nn", "Linear"), ("torch.nn", "Module.from_config"),
    ("torch.nn", "functional"),
    ("torch.nn.functional", "linear"), ("", ""), ("torch.nn.", "Linear"),
]  # fmt: skip


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "versions": lambda m: m.update(versions=True), "segments": lambda m: m.update(segments=True),
    "passes": lambda m: m.update(passes=True), "method": lambda m: m.update(method=-1),
    "plan": lambda m: m.update(plan="x"), "a number that is none": lambda m: m.update(note=float("nan")),
    "dtype": lambda m: m["layers"]["cut"].update(dtype=""),
    "bias_dtype": lambda m: m["layers"]["cut"].update(bias_dtype=""),
    "transforms": lambda m: m["layers"]["cut"]["layout"].update(transforms=""),
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_fields_of_another_type(field: str, folder: Path) -> None:
    manifest = manifest_of(folder)
    (folder / "quantized.json").write_text(json.dumps(manifest))
    load_quantized(folder, Net())
    WRONG[field](manifest)
    (folder / "quantized.json").write_text(json.dumps(manifest))
    with pytest.raises(QuantizationError, match="save the model again") as caught:
        load_quantized(folder, Net())
    assert is_sentence(caught.value)


def test_what_is_saved_can_be_read(folder: Path) -> None:
    net = quantize_(Net(), presets.rtn("w8a8"), [(X,)])
    with pytest.raises(QuantizationError, match="extra cannot be written as JSON"):
        save_quantized(net, folder, extra={"least": float("inf")})
    assert plain({"theta": [float("inf"), 1.5]}) == {"theta": ["inf", 1.5]}  # of a model's config


@pytest.mark.parametrize("module, name", CLASSES)
def test_a_class_that_is_no_model(module: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")  # whose own first import calls import_module too
    imported: list[str] = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda each: (imported.append(each), real(each))[1])
    manifest = manifest_of(folder)
    manifest |= {"class": {"module": module, "name": name}, "config": {}}
    (folder / "quantized.json").write_text(json.dumps(manifest))
    with pytest.raises(QuantizationError, match="pass model="):
        load_quantized(folder)
    assert all(each.startswith(("diffusers.", "diffusers\0", "torch.nn")) for each in imported)


@pytest.mark.parametrize(
    "error", [TypeError("a\nb"), KeyError("depth"), AssertionError(), ZeroDivisionError("by zero")]
)
def test_a_config_that_its_class_refuses(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(nn.Module):
        @classmethod
        def from_config(cls, config: object) -> nn.Module:
            raise error

    monkeypatch.setattr("segquant.serialize.load._model_class", lambda *_: Refusing)
    manifest = manifest_of(folder)
    manifest |= {"class": {"module": "torch.nn", "name": "Refusing"}, "config": {"depth": -1}}
    (folder / "quantized.json").write_text(json.dumps(manifest))
    with pytest.raises(
        QuantizationError, match=rf"cannot be built from its config \({type(error).__name__}: .*pass mod"
    ):
        load_quantized(folder)


class WithState(nn.Module):
    def __init__(self, state: object = None) -> None:
        super().__init__()
        self.linear, self.state = nn.Linear(8, 4), state

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_an_extra_state_is_saved_as_a_tensor_or_refused(tmp_path: Path) -> None:
    for state in ({"step": 3}, b"bytes", None, [torch.zeros(2)]):
        model = quantize_(WithState(state), presets.rtn("w8a8_dynamic"), [])
        with pytest.raises(
            QuantizationError, match="_extra_state of the model is .*, and no tensor, which takes pickle"
        ):
            save_quantized(model, tmp_path / "model")
    model = quantize_(WithState(torch.arange(3)), presets.rtn("w8a8_dynamic"), [])
    loaded = load_quantized(save_quantized(model, tmp_path / "model"), WithState())
    assert torch.equal(loaded.state, torch.arange(3)) and torch.equal(loaded(X), model(X))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("key", ["num_attention_heads", "out_channels"])
def test_a_config_with_layers_of_no_size(tmp_path: Path, key: str) -> None:
    pytest.importorskip("diffusers")
    from tests.segquant.deploy.tiny import inputs, small

    model = quantize_(small(), presets.rtn("w8a8"), [inputs(1)])
    save_quantized(model, tmp_path / "saved")
    manifest = json.loads((tmp_path / "saved" / "quantized.json").read_text())
    manifest["config"][key] = 0
    (tmp_path / "saved" / "quantized.json").write_text(json.dumps(manifest))
    with pytest.raises(QuantizationError, match="does not fit"):
        load_quantized(tmp_path / "saved")
