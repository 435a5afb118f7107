"""Small models and an independent float64 quantized linear for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from segquant import PRECISIONS, Outcome, Segments, quantize_with_outcome_
from tests.segquant import decoding

OUTCOMES: WeakKeyDictionary[nn.Module, Outcome] = WeakKeyDictionary()
"""Of the models that `told` quantized."""


def told(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`quantize_`, whose outcome is kept in OUTCOMES."""
    OUTCOMES[model] = quantize_with_outcome_(model, *args, **kwargs)
    return model


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """AdaLN-like: a SiLU-fed linear cut in three uneven pieces, a GELU feed-forward, a concat-fed output."""

    def __init__(self, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.ada = nn.Linear(width, 3 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.out = nn.Linear(2 * width, width, bias=False)
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in (self.ada, self.up, self.down, self.out):
                module.weight.normal_(0, module.in_features**-0.5, generator=g)
                module.weight[:, torch.randperm(module.in_features, generator=g)[:2]] *= 4
            for module in (self.ada, self.up, self.down):
                module.bias.normal_(0, 0.1, generator=g)
            self.ada.weight *= torch.tensor([0.05, 1.0, 4.0]).repeat_interleave(width)[:, None]
            self.out.weight *= torch.tensor([0.2, 3.0]).repeat_interleave(width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.ada(nn.functional.silu(condition)).chunk(3, dim=-1)
        y = x * (1 + scale[:, None]) + shift[:, None]
        y = self.down(nn.functional.gelu(self.up(y)))
        return x + gate[:, None] * self.out(torch.cat((x, y), dim=-1))


def block_batches(count: int, seed: int, width: int = 32) -> list[dict[str, Tensor]]:
    found = []
    for index in range(count):
        x = tensor(2, 9, width, seed=seed * 1000 + index)
        x[..., 3] *= 12  # an outlier channel
        found.append({"x": x, "condition": 2 * tensor(2, width, seed=seed * 1000 + index + 500)})
    return found


def block_segments(width: int = 32) -> dict[str, Segments]:
    """What find_segments finds in a Block."""
    return {
        "ada": Segments(output=(width,) * 3, activation="silu"),
        "up": Segments(),
        "down": Segments(activation="gelu"),
        "out": Segments(input=(width, width)),
    }


BLOCK_SEGMENTS = block_segments()


def rotation(blocks: Sequence[int], signs: Tensor) -> Tensor:
    """diag(signs) · blockdiag(H_n / √n), float64: entry (i, j) of Sylvester's H_n is −1 to the shared bits of i, j."""
    parts = []
    for size in blocks:
        entries = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
        parts.append(torch.tensor(entries, dtype=torch.float64) / size**0.5)
    return signs.double()[:, None] * torch.block_diag(*parts)


def brute_force(module: Any, x: Tensor) -> Tensor:
    """A QuantLinear's output in float64 from its buffers alone (see `decoding`), DualScale as two products."""
    layout, buffers = module.layout, {name: buffer.detach() for name, buffer in module.named_buffers()}
    weight = torch.from_numpy(decoding.weight_of(layout, buffers))
    parts, rank = [], 0
    low_rank, turn = layout.transform("low_rank"), layout.transform("rotation")
    flat = buffers["low_rank_up"].double() if low_rank else None
    offset = 0
    for branch, rows in enumerate(layout.branch_slices):
        xs = x.double() / buffers["smooth"][branch].double() if layout.transform("smoothing") else x.double()
        if turn:
            xs = xs @ rotation(turn.blocks(layout.columns), buffers["rotation_signs"])
        if layout.transform("shift"):
            xs = xs - buffers["shift"][branch].double()
        whole = layout.scheme.input is None
        rounded = [xs] if whole else map(torch.from_numpy, decoding.InputOf(layout, buffers, branch).parts(xs))
        total = torch.zeros(*x.shape[:-1], rows.stop - rows.start, dtype=torch.float64)
        for part in rounded:
            total += part @ weight[rows].T
        if flat is not None:
            r, size = low_rank.ranks[branch], layout.branches[branch]
            down = buffers["low_rank_down"][rank : rank + r].double()
            total += xs @ down.T @ flat[offset : offset + r * size].view(size, r).T
            rank, offset = rank + r, offset + r * size
        if layout.transform("shift"):
            total += buffers["shift_product"][rows].double()
        parts.append(total)
    out = torch.cat(parts, -1)
    return out + buffers["bias"].double() if layout.bias else out


SUPER_BLOCKS = tuple(
    name for name, scheme in PRECISIONS.items() if scheme.weight and scheme.weight.scale_dtype[0] == "k"
)
"""Precisions whose scales belong to 256 weights of a row."""
EIGHT = ("w8a8_tensor", "w8a8", "w8a8_dynamic", "fp8", "w4a8_channel", "w4a8", "w4a4", "w4a16")
"""The precisions of the first versions."""
EACH_KIND = ("w8a8_asym", "w4a8_asym", "w3a16", "w4a16_nf4", "mxfp6", "mxint8", "nvfp4", "q4_0", "q5_1", "q3_k", "q4_k")
"""One of every kind that they have not: inputs and weights with zero points, packed, nf4; scales in every dtype."""
