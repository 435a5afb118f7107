"""Compare methods and precisions on one model, in Python: error of the output and size of the weights.

    python examples/sweep.py

With pictures, metrics and intervals it is one command:
`segquant -m quantizer=rtn,smoothquant,gptq,segquant_g precision=w8a8_tensor,w4a8`.
"""

import copy

import torch
from torch import nn

import segquant
from segquant import presets

METHODS = (presets.rtn, presets.smoothquant, presets.gptq, presets.segquant_g)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).eval()
outliers = 1 + 15 * (torch.arange(64) % 16 == 0)  # every sixteenth channel is large
batches = [(torch.randn(32, 64) * outliers,) for _ in range(48)]
calibration, held_out = batches[:32], batches[32:]
segments = segquant.find_segments(model, batches[0])

print("| precision | method | output error | kB |\n|---|---|---|---|")
for precision in ("w8a8_tensor", "w4a8"):
    for preset in METHODS:
        quantized = segquant.quantize_(copy.deepcopy(model), preset(precision=precision), calibration, segments)
        error = segquant.output_error(model, quantized, held_out)
        size = segquant.model_weight_bytes(quantized) / 1e3
        print(f"| {precision} | {preset.__name__} | {error:.4f} | {size:.1f} |")
