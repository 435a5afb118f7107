"""Every field of a saved model's manifest with values of every kind: a sentence that names it, or the same outputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segquant import QuantizationError, load_quantized, read_outcome
from tests.segquant.serialize.saved_net import Net, X, is_sentence, manifest_of

VALUES: tuple[Any, ...] = (None, -1, "x", [], {}, float("inf"), True)
"""The infinite one is written as 1e400."""
NO_MATTER = {
    "versions", "versions/torch", "versions/safetensors",  # for people
    "class/module", "class/name", "config",  # where the caller gives the model
    "layers/*/dtype", "layers/*/bias_dtype",  # null: of files before them
    "extra", "extra/note", "extra/note/0",  # the caller's own
    # other values that are right as well, and tell otherwise what was done, which outputs do not depend on
    "method/name", "method/seed", "method/scheme", "method/scheme/input", "method/cuts", "method/targets",
    "method/targets/overrides", "method/targets/overrides/0/0", "method/targets/overrides/0/1",
    "method/targets/overrides/0/1/rank", "method/targets/convolutions", "method/bias_correction", "method/budget",
    "segments", "segments/cut", "segments/cut/output", "segments/cut/activation", "plan", "plan/0/layer",
    # parts that nobody registered here; `read_outcome` refuses them
    "method/optimizer/name", "method/calibrator/name", "method/ranges/name",
}  # fmt: skip
OTHERS = {"strides", "layers/*/layout/scheme/input", "layers/*/layout/dual/0"}
"""Another model that could have been saved: older versions stored no strides, inputs may stay in floating point or
have two scales."""


def _places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _changed(manifest: Any, path: tuple[Any, ...], value: Any) -> str | None:
    found = copy.deepcopy(manifest)
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    if type(holder[path[-1]]) is type(value) and holder[path[-1]] == value:
        return None
    holder[path[-1]] = value
    return json.dumps(found).replace("Infinity", "1e400")


OTHER_WORDS = ("1e400", "SHA-256", "made with transform", "does not fit this model: ", "names a tensor")
"""What sentences say of a field in the place of its name."""


def _names(path: tuple[Any, ...], message: str) -> bool:
    """Whether a sentence has the field, or what it lies in."""
    return any(word in message for word in (*map(str, path[-4:]), *OTHER_WORDS))


def _fault(folder: Path, path: tuple[Any, ...], expected: Tensor) -> str | None:
    place = "/".join("*" if path[0] == "layers" and at == 1 else str(step) for at, step in enumerate(path))
    try:
        model = load_quantized(folder, Net())
    except Exception as error:  # all of them, to see which are no sentences
        if not is_sentence(error):
            return f"{type(error).__name__} {error}"
        return None if _names(path, str(error)) else f"no name of it in: {error}"
    with torch.no_grad():
        if not torch.equal(model(X), expected):
            return None if place in OTHERS else "another output"
    return None if place in NO_MATTER | OTHERS else "taken"


def _faults(folder: Path, expected: Tensor, step: int) -> tuple[int, list[str]]:
    manifest, faults = manifest_of(folder), []
    pairs = [(path, value) for path in _places(manifest) for value in VALUES][::step]
    for path, value in pairs:
        text = _changed(manifest, path, value)
        if text is not None:
            (folder / "quantized.json").write_text(text)
            fault = _fault(folder, path, expected)
            faults += [] if fault is None else [f"{'/'.join(map(str, path))}={value!r}: {fault}"]
    return len(pairs), faults


def test_every_field(folder: Path, saved: tuple[Path, Tensor]) -> None:
    """One pair of a field and a value in six."""
    tried, faults = _faults(folder, saved[1], 6)
    assert tried > 200 and not faults, "\n".join(faults)


@pytest.mark.slow
def test_every_field_with_every_value(folder: Path, saved: tuple[Path, Tensor]) -> None:
    tried, faults = _faults(folder, saved[1], 1)
    assert tried > 1300 and not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("passes", -1), ("plan/0/bytes", -1), ("plan/0/error", -0.5), ("plan/0/gain", -1), ("method/headroom", -1),
        ("method/gram_shrinkage", -1), ("method/version", 7), ("method/scheme/weight/dtype", "int99"),
        ("method/budget/bytes", 0), ("segments/cut/output", [8]), ("segments/cut/output/0", -3), ("method", {}),
    ],
)  # fmt: skip
def test_values_that_are_of_their_type_and_none_that_there_are(folder: Path, place: str, value: Any) -> None:
    text = _changed(manifest_of(folder), tuple(int(s) if s.isdigit() else s for s in place.split("/")), value)
    assert text is not None
    (folder / "quantized.json").write_text(text)
    named = r"'(method|passes|plan\[0\]|segments\.cut)'"
    for read in (lambda: load_quantized(folder, Net()), lambda: read_outcome(folder)):
        with pytest.raises(
            QuantizationError, match=rf"quantized\.json is damaged: its {named} cannot be read"
        ) as caught:
            read()
        assert is_sentence(caught.value)


def test_an_older_schema_with_newer_fields(folder: Path) -> None:
    """Schema 1 had a flat method, which is read as such: what is not flat is refused."""
    manifest = manifest_of(folder)
    for method in ({"version": 1}, {"name": 3}, {"name": "x", "scheme": None}, {**manifest["method"], "version": 1}):
        (folder / "quantized.json").write_text(json.dumps({**manifest, "schema": 1, "method": method}))
        with pytest.raises(QuantizationError, match=r"quantized\.json is damaged: it.* 'method") as caught:
            load_quantized(folder, Net())
        assert is_sentence(caught.value)
