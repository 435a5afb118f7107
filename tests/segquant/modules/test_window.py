"""Windows: what a convolution's is, and what a saved one may be."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from segquant import QuantizationError
from segquant.modules.window import Window

CASES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": (4, 2), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_product_with_patches_is_the_convolution(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, bias=True, **options).double()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    weight = conv.weight.flatten(1)
    found = Window.of(conv).apply(lambda rows: nnf.linear(rows, weight, conv.bias), x)
    torch.testing.assert_close(found, conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_window_survives_json(options: dict[str, Any]) -> None:
    window = Window.of(nn.Conv2d(3, 5, **options))
    assert Window.from_dict(json.loads(json.dumps(dataclasses.asdict(window)))) == window


@pytest.mark.parametrize(
    "change",
    [{"kernel": [3]}, {"padding": [1, 1]}, {"size": [1, 1]}, {"stride": None}, {"dilation": ["a", "b"]}],
    ids=str,
)
def test_a_window_that_is_none_is_refused_in_one_sentence(change: dict[str, Any]) -> None:
    good = dataclasses.asdict(Window((3, 3)))
    with pytest.raises(QuantizationError, match="does not describe a convolution's window"):
        Window.from_dict(good | change)


@pytest.mark.parametrize("field", ["kernel", "padding", "mode"])
def test_a_window_without_a_field_is_refused(field: str) -> None:
    values = dataclasses.asdict(Window((3, 3)))
    del values[field]
    with pytest.raises(QuantizationError, match="does not describe a convolution's window"):
        Window.from_dict(values)
