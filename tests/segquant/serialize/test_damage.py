"""A damaged folder ends in one sentence, or loads as it was; nothing in it is imported or run."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segquant import (
    InputStats,
    Method,
    Outcome,
    QuantizationError,
    QuantLinear,
    Segments,
    load_quantized,
    presets,
    quantize_,
    read_outcome,
    save_quantized,
)
from segquant.method.plan_file import LayerPlan
from tests.segquant.support import tensor

VALUES = (None, [], {}, "x", -1, 1e99, True, [[]], {"x": None}, 10**30, "load")
"""In the place of any other. With "taken out" twelve, so that every eleventh damage goes through all of them."""


UNSEEN = ("strides", *(f"layers/{name}/layout/scheme/input = None" for name in ("turned", "conv")),
          "layers/conv/layout/dual/0 = True")  # fmt: skip
"""What can be otherwise: older versions stored no strides, inputs may stay in floating point or have two scales."""


class Net(nn.Module):
    """A cut linear with all transforms but one, a rotated one, a convolution, a float layer; an alias and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.turned, self.conv = nn.Linear(8, 8), nn.Linear(8, 4), nn.Conv2d(2, 3, (3, 2), padding=1)
        self.kept = nn.Conv2d(3, 2, 2).to(memory_format=torch.channels_last)
        self.again = self.kept
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.turned(self.cut(x + self.table)).view(-1, 2, 4, 4)
        return self.again(self.conv(rows))


def _quantized() -> nn.Module:
    model = Net().eval()
    stats = InputStats("cut", 8, keep_gram=True)
    stats.update(tensor(16, 8), None)
    cut = Method.of("cut", "w8a8_tensor", optimizer="svd", alpha=0.5, rank=2, seglinear=True)
    model.cut = QuantLinear.from_float(model.cut, cut, stats, Segments(output=(3, 5), activation="silu"))
    model.turned = QuantLinear.from_float(model.turned, presets.rtn("w4a8_channel", rotate=True))
    model.conv = QuantLinear.from_float(model.conv, presets.rtn("w8a8_dynamic"))
    return model


X = tensor(8, 8)
OUTCOME = Outcome(
    presets.auto("w4a8", overrides={"cut": {"rank": 2}}), {"cut": Segments(output=(3, 5))}, 2, (LayerPlan("cut"),)
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    model = _quantized()
    folder = save_quantized(model, tmp_path_factory.mktemp("saved") / "model", OUTCOME, extra={"note": [1]})
    with torch.no_grad():
        return folder, model(X)


@pytest.fixture
def folder(saved: tuple[Path, Tensor], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved[0], tmp_path / "model"))


def _places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _damaged(manifest: Any) -> Iterator[tuple[str, Any]]:
    """Every value of a manifest taken out, or another in its place."""
    for path in _places(manifest):
        for value in ("taken out", *VALUES):
            changed = copy.deepcopy(manifest)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            if value == "taken out":
                del holder[path[-1]]
            else:
                holder[path[-1]] = value
            yield f"{'/'.join(map(str, path))} = {value!r}", changed


def _sentence(error: BaseException) -> bool:
    return type(error) is QuantizationError and "\n" not in str(error) and len(str(error)) < 600


def _faults(folder: Path, expected: Tensor, damaged: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """What ends in another exception than a sentence, or loads as another model."""
    net = Net()
    for what, manifest in damaged:
        (folder / "quantized.json").write_text(json.dumps(manifest))
        try:
            if what.partition("/")[0].partition(" ")[0] in ("method", "segments", "passes", "plan"):
                read_outcome(folder)
                continue
            again = load_quantized(folder, copy.deepcopy(net))
            with torch.no_grad():
                if not torch.equal(again(X), expected) and not what.startswith(UNSEEN):
                    yield f"{what}: another output"
        except BaseException as error:  # all of them, to see which are no sentences
            if not _sentence(error):
                yield f"{what}: {type(error).__name__} {error}"


def _manifest(folder: Path) -> Any:
    return json.loads((folder / "quantized.json").read_text())


@pytest.fixture
def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imports {name}"))


@pytest.mark.usefixtures("no_import")
def test_values_of_a_manifest(folder: Path, saved: tuple[Path, Tensor]) -> None:
    """One damage in eleven: each place gets one or two of the values."""
    assert not list(_faults(folder, saved[1], itertools.islice(_damaged(_manifest(folder)), 0, None, 11)))


@pytest.mark.slow
@pytest.mark.usefixtures("no_import")
def test_every_value_of_a_manifest(folder: Path, saved: tuple[Path, Tensor]) -> None:
    assert not list(_faults(folder, saved[1], _damaged(_manifest(folder))))


TEXTS: dict[str, bytes] = {
    "a list": b"[]",
    "a word": b'"quantized"',
    "null": b"null",
    "nothing": b"",
    "no UTF-8": b'{"schema": 2, "extra": "\xff\xfe"}',
    "UTF-16": '{"schema": 2}'.encode("utf-16"),
    "deep": b"[" * 100_000,
    "long number": b'{"schema": ' + b"1" * 5000 + b"}",
    "true for 1": b'{"schema": true}',
    "no schema": b"{}",
    "the schema alone": b'{"schema": 2}',
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_manifest_that_is_none(text: str, folder: Path) -> None:
    (folder / "quantized.json").write_bytes(TEXTS[text])
    for read in (lambda: load_quantized(folder, Net()), lambda: read_outcome(folder)):
        with pytest.raises(QuantizationError, match=r"quantized\.json (is|has) .*; save the model again$"):
            read()


def _rewritten(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """The tensors changed, with a manifest that knows their size."""
    path = folder / "quantized.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    _sized(folder)


def _sized(folder: Path) -> None:
    manifest = _manifest(folder)
    manifest["bytes"] = (folder / "quantized.safetensors").stat().st_size
    (folder / "quantized.json").write_text(json.dumps(manifest))


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
                assert _sentence(error), (place, byte, error)


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
    assert _sentence(caught.value)


CLASSES = [
    ("os", "system"), ("diffusersx", "Model"), ("diffusers\0", "Model"), ("diffusers.no_such", "Model"),
    ("diffusers..models", "Model"), ("torch.nn", "Linear"), ("torch.nn", "Module.from_config"),
    ("torch.nn", "functional"),
    ("torch.nn.functional", "linear"), ("", ""), ("torch.nn.", "Linear"),
]  # fmt: skip


@pytest.mark.parametrize("module, name", CLASSES)
def test_a_class_that_is_no_model(module: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda each: (imported.append(each), real(each))[1])
    manifest = _manifest(folder)
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
    manifest = _manifest(folder)
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
