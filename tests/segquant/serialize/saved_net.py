"""A small model of many parts, whose saved form the tests of this folder damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segquant import InputStats, Method, Outcome, QuantizationError, QuantLinear, Segments, presets
from segquant.method.plan_file import LayerPlan
from tests.segquant.support import tensor


class Net(nn.Module):
    """A cut linear with all transforms but one, a rotated one, a convolution, a float layer; an alias and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.turned, self.conv = nn.Linear(8, 8), nn.Linear(8, 4), nn.Conv2d(2, 3, (3, 2), padding=1)
        self.kept = nn.Conv2d(3, 2, (2, 1)).to(memory_format=torch.channels_last)
        self.again = self.kept
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.turned(self.cut(x + self.table)).view(-1, 2, 4, 4)
        return self.again(self.conv(rows))


def quantized() -> nn.Module:
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


def is_sentence(error: BaseException) -> bool:
    return isinstance(error, QuantizationError) and "\n" not in str(error) and len(str(error)) < 600


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "quantized.json").read_text())
