"""A method of one's own: parts of the paper's slots put together, and other settings for some layers.

python examples/own_method.py
"""

import torch
from torch import nn

import segquant

method = segquant.Method.of(
    "smooth_then_gptq",
    "w4a8",
    seglinear=True,  # cut layers where the graph says so
    optimizer="smooth",  # SmoothQuant …
    alpha="search",  # … with α searched for every piece
    calibrator="gptq",
    ranges="mse",
    overrides={
        "blocks.0.*": {"precision": "w8a8"},  # the first block at 8 bits
        "head": {"skip": True},  # the last layer in floating point
    },
)

torch.manual_seed(0)
blocks = [nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(2)]
model = nn.Sequential()
model.add_module("blocks", nn.Sequential(*blocks))
model.add_module("head", nn.Linear(64, 8))

segquant.quantize_(model, method, [(torch.randn(32, 64),) for _ in range(8)])
for name, layer in model.named_modules():
    if isinstance(layer, (nn.Linear, segquant.QuantLinear)):
        weight = layer.layout.scheme.weight if isinstance(layer, segquant.QuantLinear) else None
        print(f"{name}: {weight.bits if weight else 32}-bit weights")
