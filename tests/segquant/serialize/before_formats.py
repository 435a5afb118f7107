"""The model of `saved_v2/`, which version 2 of the file format was given before formats had dtypes of scales.

`python -m tests.segquant.serialize.before_formats FOLDER` wrote it, with the code of that time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import segquant

CHOICES = {
    "groups": "w4a8", "floats": "fp8", "both": "w4a4", "tensor": "w8a8_tensor", "alone": "w4a16",
    "channel": "w4a8_channel",
}  # fmt: skip


class Net(nn.Module):
    """One linear for each kind of precision there was."""

    def __init__(self) -> None:
        super().__init__()
        for name in CHOICES:
            self.add_module(name, nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = x + nn.functional.silu(layer(x))
        return x


def inputs(seed: int) -> Tensor:
    return torch.randn(12, 64, generator=torch.Generator().manual_seed(seed))


def write(folder: Path) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    overrides = {name: {"precision": precision} for name, precision in CHOICES.items()}
    method = segquant.presets.segquant_a("w4a8", rank=2, alpha=0.5, overrides=overrides)
    segquant.quantize_(model, method, [(inputs(seed),) for seed in range(4)])
    segquant.save_quantized(model, folder)
    with torch.no_grad():
        save_file({"x": inputs(9), "y": model(inputs(9))}, folder / "expected.safetensors")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
