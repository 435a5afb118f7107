"""A damaged folder ends in one sentence, or loads as it was; nothing in it is imported or run."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segquant import QuantizationError, load_quantized, read_outcome, save_quantized
from tests.segquant.serialize.saved_net import OUTCOME, Net, X, is_sentence, manifest_of

VALUES = (None, [], {}, "x", -1, 1e99, True, [[]], {"x": None}, 10**30, "load")
"""In the place of any other. With "taken out" twelve, so that every eleventh damage goes through all of them."""


UNSEEN = ("strides", *(f"layers/{name}/layout/scheme/input = None" for name in ("turned", "conv")),
          "layers/conv/layout/dual/0 = True")  # fmt: skip
"""What can be otherwise: older versions stored no strides, inputs may stay in floating point or have two scales."""


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
            if not is_sentence(error):
                yield f"{what}: {type(error).__name__} {error}"


@pytest.fixture
def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imports {name}"))


@pytest.mark.usefixtures("no_import")
def test_values_of_a_manifest(folder: Path, saved: tuple[Path, Tensor]) -> None:
    """One damage in eleven: each place gets one or two of the values."""
    assert not list(_faults(folder, saved[1], itertools.islice(_damaged(manifest_of(folder)), 0, None, 11)))


@pytest.mark.slow
@pytest.mark.usefixtures("no_import")
def test_every_value_of_a_manifest(folder: Path, saved: tuple[Path, Tensor]) -> None:
    assert not list(_faults(folder, saved[1], _damaged(manifest_of(folder))))


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


@pytest.mark.parametrize(
    "field", [{"schema": True}, {"schema": 2.0}, {"class": {}}, {"class": {"module": "os", "name": 3}}]
)
def test_a_field_that_only_some_readings_need(field: dict[str, Any], folder: Path) -> None:
    (folder / "quantized.json").write_text(json.dumps({**manifest_of(folder), **field}))
    for model in (None, Net()):
        with pytest.raises(QuantizationError, match="; save the model again$"):
            load_quantized(folder, model)


def test_a_model_saved_without_its_outcome_has_none(folder: Path, tmp_path: Path) -> None:
    model = load_quantized(folder, Net())
    assert read_outcome(folder) == OUTCOME and read_outcome(save_quantized(model, tmp_path / "bare")) is None


@pytest.mark.parametrize("field", ["stride", "padding", "dilation"])
def test_a_window_that_is_not_the_models(folder: Path, field: str) -> None:
    manifest = manifest_of(folder)
    window = manifest["layers"]["conv"]["window"]
    window[field] = [size + 1 for size in window[field]]
    (folder / "quantized.json").write_text(json.dumps(manifest))
    with pytest.raises(
        QuantizationError, match=rf"layer 'conv' cannot be read .*its {field} .* is not the model's"
    ) as caught:
        load_quantized(folder, Net())
    assert is_sentence(caught.value)
