"""Quantize a module that diffusers does not know: the graph alone says where its layers are cut.

python examples/own_module.py
"""

import torch
from torch import Tensor, nn

import segquant


class Block(nn.Module):
    """A small denoiser block: modulation as in AdaLN, then a feed-forward network with a skip connection."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width + width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(nn.functional.silu(condition)).chunk(2, dim=-1)
        hidden = nn.functional.gelu(self.up(x * (1 + scale) + shift))
        output: Tensor = self.down(torch.cat([hidden, x], dim=-1))
        return output


torch.manual_seed(0)
model = Block().eval()
batches = [(torch.randn(32, 64), torch.randn(32, 64)) for _ in range(9)]  # arguments of forward
expected = model(*batches[-1])

for name, segments in segquant.find_segments(model, batches[0]).items():
    print(f"{name}: {segments}")

segquant.quantize_(model, segquant.presets.segquant_a(precision="w8a8_tensor"), batches[:-1])
error = (model(*batches[-1]) - expected).norm() / expected.norm()
print(f"relative error of the output on inputs that calibration did not see: {error:.4f}")
