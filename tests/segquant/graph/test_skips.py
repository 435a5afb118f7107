"""A UNet's skips: which cuts Q-Diffusion makes, and that it makes no other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segquant import QuantConv2d, find_segments, presets, quantize_
from segquant.graph.control_cuts import skip_cuts
from segquant.graph.segments import Segments
from tests.segquant.support import tensor

CHANNELS = 8


class UNet(nn.Module):
    """A skip that a convolution reads behind norm and SiLU, its shortcut, and a linear whose input is a concat too."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.GroupNorm(4, 2 * CHANNELS)
        self.up = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.shortcut = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        self.fused = nn.Linear(2 * CHANNELS, 3 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.down(x), x], dim=1)
        y = self.up(nn.functional.silu(self.norm(both))) + self.shortcut(both)
        pooled = y.mean((2, 3))
        shift, scale, gate = self.fused(torch.cat([pooled, pooled.square()], dim=-1)).chunk(3, dim=-1)
        return (y * scale[..., None, None] + shift[..., None, None]) * gate[..., None, None]


def batches() -> list[tuple[Tensor]]:
    return [(tensor(2, CHANNELS, 6, 6, seed=seed),) for seed in range(4)]


def test_concats_that_convolutions_read_are_skips_and_others_are_not() -> None:
    found = find_segments(UNet(), batches()[0])
    assert {name for name, segments in found.items() if segments.skip} == {"up", "shortcut"}
    assert found["fused"].input == (CHANNELS, CHANNELS) and found["fused"].output == (CHANNELS,) * 3
    assert skip_cuts(found["shortcut"]) == Segments(input=(CHANNELS, CHANNELS))
    for name in ("down", "fused"):
        assert skip_cuts(found[name]) == Segments()


def test_heads_are_no_skips_and_what_feeds_an_uncut_input_stays_known() -> None:
    assert skip_cuts(Segments(output=(3, 5), input=(4, 4))) == Segments()
    fed = Segments(input=(4, 4), input_activations=("silu", "silu"))
    assert skip_cuts(fed) == Segments(activation="silu")
    both = Segments(input=(4, 4), input_activations=("silu", None))
    assert skip_cuts(both) == Segments()


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w8a8"])
def test_q_diffusion_gives_the_pieces_of_skips_scales_of_their_own(precision: str) -> None:
    settings = {"steps": 2}
    method = presets.q_diffusion(precision, convolutions=True, reconstruction=settings)
    model = quantize_(UNet(), method, batches())
    assert isinstance(model.up, QuantConv2d)
    assert model.up.layout.columns == (9 * CHANNELS, 9 * CHANNELS)
    assert model.shortcut.layout.columns == (CHANNELS, CHANNELS)
    for name in ("down", "fused"):
        assert len(getattr(model, name).layout.columns) == len(getattr(model, name).layout.rows) == 1
    whole = quantize_(UNet(), method.changed(seglinear=False), batches())
    assert all(len(getattr(whole, name).layout.columns) == 1 for name in ("up", "shortcut", "fused"))
