"""`quantization_config` of diffusers' config.json with values of every type: a sentence, or layers as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from segquant import QuantizationError, QuantLinear
from segquant.serialize.config import from_config, to_config
from segquant.serialize.load import swap_empty
from tests.segquant.serialize.saved_net import Net, is_sentence, manifest_of
from tests.segquant.serialize.test_method_fields import OTHERS, _places

GONE = object()


@pytest.fixture(scope="module")
def config(saved: tuple[Path, Tensor]) -> dict[str, Any]:
    return to_config(manifest_of(saved[0]))


def _with(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    copied = json.loads(json.dumps(config))
    inner: Any = copied
    *way, key = place.split("/")
    for step in way:
        inner = inner[int(step) if isinstance(inner, list) else step]
    last: Any = int(key) if isinstance(inner, list) else key
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return dict(copied)


def _layers(config: dict[str, Any]) -> int:
    net = Net()
    swap_empty(net, from_config(config, "config.json"))
    return sum(isinstance(module, QuantLinear) for module in net.modules())


def test_every_field(config: dict[str, Any]) -> None:
    refused = taken = 0
    for place in (each.removeprefix("/") for each in _places(config, "")):
        if place.startswith(("layers/turned", "layouts/1")):  # as those of the others
            continue
        for value in (GONE, *OTHERS, float("nan"), 2**70):
            try:
                _layers(_with(config, place, value))
                taken += 1
            except QuantizationError as error:
                assert is_sentence(error), (place, value, error)
                refused += 1
    assert refused > 1000 and taken > 50


WRONG = [
    ("schema", True), ("schema", 2.0), ("layouts", "float32"), ("layouts", None), ("layouts/0", "x"),
    ("layouts/0", None), ("layers", {}), ("layers", []), ("layers/cut", 3), ("layers/cut/layout", True),
    ("layers/cut/layout", -1),
    ("layers/cut/layout", 99), ("layers/cut/bias_dtype", 0), ("layers/cut/bias_dtype", GONE),
    ("layers/cut/bias_dtype", ""), ("layers/cut/dtype", []), ("aliases", []), ("outside", "table"), ("strides", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_fields_of_other_types(config: dict[str, Any], place: str, value: Any) -> None:
    assert _layers(config) == 3
    with pytest.raises(QuantizationError, match="the quantization_config of config.json ") as caught:
        from_config(_with(config, place, value), "config.json")
    assert is_sentence(caught.value)
