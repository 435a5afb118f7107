"""find_segments on real denoisers: tiny configurations counted by hand, and one of full size on meta."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from segquant.graph.find import find_segments
from segquant.graph.segments import Segments

diffusers = pytest.importorskip("diffusers")


def _sd3() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 16),
        "timestep": torch.tensor([10.0, 900.0]),
    }


def _flux() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return model, {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 16),
        "timestep": torch.tensor([0.1, 0.9]),
        "guidance": torch.tensor([3.0, 3.0]),
        "img_ids": torch.randn(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }


def _sdxl() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=24,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return model, {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 16), "time_ids": torch.randn(2, 6)},
    }


def _pixart() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
        use_additional_conditions=False,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "timestep": torch.tensor([10, 900]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _dit() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([10, 900]),
        "class_labels": torch.tensor([1, 2]),
    }


Built = Callable[[], tuple[nn.Module, dict[str, Any]]]
MODELS: dict[str, Built] = {"sd3": _sd3, "flux": _flux, "sdxl": _sdxl, "pixart": _pixart, "dit": _dit}


def _summary(
    model: nn.Module, segments: dict[str, Segments], kind: type[nn.Module] = nn.Linear
) -> tuple[int, Counter, Counter, Counter]:
    found = [entry for name, entry in segments.items() if isinstance(model.get_submodule(name), kind)]
    return (
        len(found),
        Counter(s.output for s in found if s.output),
        Counter(s.input for s in found if s.input),
        Counter(s.activation for s in found if s.activation),
    )


# Counted by hand from the classes' code. Every timestep embedder is linear, SiLU, linear; its input is a
# concat of sines and cosines, so no cut. AdaLN is SiLU, linear, chunk.
EXPECTED: dict[str, tuple[int, dict, dict, dict]] = {
    # Width 32 = 4 heads of 8.
    # Outside the blocks 7: timestep 2, text 2, context_embedder, norm_out (chunk 2), proj_out.
    # Block 0 (dual) 18: norm1 (chunk 9), norm1_context (chunk 6), q k v, add q k v, to_out, to_add_out,
    #   attn2 q k v and to_out, ff 2, ff_context 2. Merged heads: to_out, to_add_out, attn2.to_out.
    # Block 1 (the last: no context output) 11: norm1 (chunk 6), norm1_context (chunk 2), q k v, add q k v,
    #   to_out, ff 2. Merged heads: to_out.
    # SiLU: 2 embedders, 4 norms, norm_out. GELU: ff and ff_context of block 0, ff of block 1.
    "sd3": (36, {(32,) * 9: 1, (32,) * 6: 2, (32,) * 2: 2}, {(8,) * 4: 4}, {"silu": 7, "gelu": 3}),
    # Width 32 = 2 heads of 16.
    # Outside 10: timestep 2, guidance 2, text 2, x_embedder, context_embedder, norm_out (chunk 2), proj_out.
    # Double block 14: norm1 and norm1_context (chunk 6), 8 of attention (heads: to_out, to_add_out), ff 2,
    #   ff_context 2. Single block 6: norm (chunk 3), q k v, proj_mlp, proj_out (concat of attention 32 and
    #   MLP 128).
    # SiLU: 3 embedders, 3 norms, norm_out. GELU: ff, ff_context.
    "flux": (
        30,
        {(32,) * 6: 2, (32,) * 3: 1, (32,) * 2: 1},
        {(16,) * 2: 2, (32, 128): 1},
        {"silu": 7, "gelu": 2},
    ),
    # time_embedding 2, add_embedding 2 (the first: concat of text 16 and six times 8 of sin, cos: text is a
    # feature, so a cut), one time_emb_proj in each of 8 resnets (down 1 + 1, mid 2, up 2 + 2).
    # Transformers: down 1, mid 1, up 2, each with one block: proj_in, proj_out, 2 attentions of 4, GEGLU
    # (64 -> 2 x 256), ff out: 12. 4 + 8 + 4 * 12 = 60. All have width 64 = 4 heads of 16, two to_out each.
    # SiLU: 2 embedders, 8 resnets.
    "sdxl": (60, {(256,) * 2: 4}, {(16,) * 4: 8, (16, 48): 1}, {"silu": 10, "geglu": 4}),
    # Width 16 = 2 heads of 8. Outside 6: adaln_single (timestep 2, linear: chunked by 6 in every block after
    # a reshape and the sum with a table), caption_projection 2, proj_out. Block 10: attn1 4, attn2 4, ff 2.
    # SiLU: timestep, adaln_single. GELU: 2 ff, caption_projection.
    "pixart": (26, {(16,) * 6: 1}, {(8,) * 2: 4}, {"silu": 2, "gelu": 3}),
    # Width 16 = 2 heads of 8. Block 9: norm1 (timestep 2, linear: chunk 6), attn 4, ff 2. Outside: proj_out_1
    # (chunk 2), proj_out_2. The embedder of block 0 is called once more for the output.
    # SiLU: 2 embedders, 2 norms, proj_out_1.
    "dit": (20, {(16,) * 6: 2, (16,) * 2: 1}, {(8,) * 2: 2}, {"silu": 5, "gelu": 2}),
}


# All have a convolution for patches, but FLUX, which takes tokens. The UNet, 18 convolutions: conv_in; down blocks: 2
# resnets of 2 and the shortcut 32 -> 64 of the second, one downsampler; mid: 2 resnets of 2; up blocks: 2 resnets
# each of 2 and a shortcut, one upsampler; conv_out.
# Skip concats, each in conv1 (after norm and SiLU) and in the shortcut: 64 + 64, 64 + 32 (from the downsampler),
# 64 + 32, 32 + 32 (conv_in).
# SiLU: conv1 and conv2 of the 2 + 2 + 4 resnets, conv_out.
CONVOLUTIONS: dict[str, tuple[int, dict, dict, dict]] = {
    "sd3": (1, {}, {}, {}),
    "flux": (0, {}, {}, {}),
    "sdxl": (25, {}, {(64, 64): 2, (64, 32): 4, (32, 32): 2}, {"silu": 17}),
    "pixart": (1, {}, {}, {}),
    "dit": (1, {}, {}, {}),
}


def _widths(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels
    return layer.out_features, layer.in_features


@pytest.mark.parametrize("name", MODELS)
def test_tiny_denoisers_as_counted_by_hand(name: str) -> None:
    model, inputs = MODELS[name]()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    segments = find_segments(model, kwargs=inputs)
    assert list(segments) == list(layers)
    assert _summary(model, segments) == EXPECTED[name]
    assert _summary(model, segments, nn.Conv2d) == CONVOLUTIONS[name]
    for key, found in segments.items():
        rows, columns = _widths(layers[key])
        assert (sum(found.output or (rows,)), sum(found.input or (columns,))) == (rows, columns)
    assert find_segments(model.to("meta"), kwargs=inputs) == segments


def test_flux_single_block_output() -> None:
    model, inputs = _flux()
    found = find_segments(model, kwargs=inputs)["single_transformer_blocks.0.proj_out"]
    assert found == Segments(input=(32, 128), input_activations=(None, "gelu"))


@pytest.mark.slow
def test_sd35_medium_of_full_size_on_meta() -> None:
    """24 blocks of width 1536 = 24 heads of 64; the first 13 are dual; the last has no context output.

    Linears: 7 outside, 13 · 18 dual, 10 · 14, last 11 = 392. Chunks: 13 by 9; 10 + 1 norm1 and 23
    norm1_context by 6; the last norm1_context and norm_out by 2. Heads: 24 to_out, 23 to_add_out, 13
    attn2.to_out = 60. SiLU: 2 + 48 + 1. GELU: 24 ff, 23 ff_context.
    """
    with torch.device("meta"):
        model = diffusers.SD3Transformer2DModel(
            sample_size=128,
            in_channels=16,
            out_channels=16,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
        inputs = {
            "hidden_states": torch.empty(1, 16, 128, 128),
            "encoder_hidden_states": torch.empty(1, 333, 4096),
            "pooled_projections": torch.empty(1, 2048),
            "timestep": torch.empty(1),
        }
    assert _summary(model, find_segments(model, kwargs=inputs)) == (
        392,
        {(1536,) * 9: 13, (1536,) * 6: 34, (1536,) * 2: 2},
        {(64,) * 24: 60},
        {"silu": 51, "gelu": 47},
    )
