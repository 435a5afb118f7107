"""Quantize a diffusers denoiser with SegQuant-G, save it, load it in its quantized form.

    python examples/quantize_and_save.py [DIRECTORY]

The denoiser here is small and random; put your own `from_pretrained(…)` in its place, and real inputs for `batch`.
"""

import sys

import torch
from diffusers import SD3Transformer2DModel

import segquant


def batch(seed: int) -> dict[str, torch.Tensor]:
    """One call of the denoiser: its keyword arguments."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(2, 4, 16, 16, generator=draw),
        "encoder_hidden_states": torch.randn(2, 12, 64, generator=draw),
        "pooled_projections": torch.randn(2, 64, generator=draw),
        "timestep": torch.rand(2, generator=draw) * 1000,
    }


torch.manual_seed(0)
size = {"sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2, "pos_embed_max_size": 16}
widths = {"joint_attention_dim": 64, "caption_projection_dim": 64, "pooled_projection_dim": 64}
model = SD3Transformer2DModel(num_attention_heads=2, attention_head_dim=32, **size, **widths).eval()
before = segquant.model_weight_bytes(model)

segquant.quantize_(model, segquant.presets.segquant_g(precision="w8a8"), [batch(seed) for seed in range(8)])
folder = segquant.save_quantized(model, sys.argv[1] if len(sys.argv) > 1 else "outputs/quantized")

loaded = segquant.load_quantized(folder)
with torch.no_grad():
    assert torch.equal(loaded(**batch(99)).sample, model(**batch(99)).sample)
print(f"{before / 1e6:.2f} MB became {segquant.model_weight_bytes(loaded) / 1e6:.2f} MB in {folder}")
