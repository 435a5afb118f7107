"""Small models and an independent float64 quantized linear for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from segquant import Outcome, Segments, quantize_with_outcome_

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


def expanded(scale: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Block scales written out entry by entry."""
    full = torch.empty(sum(rows), sum(columns), dtype=torch.float64)
    top = 0
    for i, height in enumerate(rows):
        left = 0
        for j, width in enumerate(columns):
            full[top : top + height, left : left + width] = scale[i, j].double()
            left += width
        top += height
    return full


def rotation(blocks: Sequence[int], signs: Tensor) -> Tensor:
    """diag(signs) · blockdiag(H_n / √n), float64: entry (i, j) of Sylvester's H_n is −1 to the shared bits of i, j."""
    parts = []
    for size in blocks:
        entries = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
        parts.append(torch.tensor(entries, dtype=torch.float64) / size**0.5)
    return signs.double()[:, None] * torch.block_diag(*parts)


def brute_force(module: Any, x: Tensor) -> Tensor:
    """A QuantLinear's output in float64 from its buffers, DualScale as two products, one loop per segment."""
    layout, buffers = module.layout, dict(module.named_buffers())
    weight = (
        module_codes(module) * expanded(buffers["weight_scale"], layout.weight_rows, layout.weight_columns)
    ).double()
    pieces, parts, rank = layout.input_columns, [], 0
    low_rank, turn = layout.transform("low_rank"), layout.transform("rotation")
    flat = buffers["low_rank_up"].double() if low_rank else None
    offset = 0
    for branch, rows in enumerate(layout.branch_slices):
        xs = x.double() / buffers["smooth"][branch].double() if layout.transform("smoothing") else x.double()
        if turn:
            xs = xs @ rotation(turn.blocks(layout.columns), buffers["rotation_signs"])
        if layout.transform("shift"):
            xs = xs - buffers["shift"][branch].double()
        total = torch.zeros(*x.shape[:-1], rows.stop - rows.start, dtype=torch.float64)
        left = 0
        for j, width in enumerate(pieces):
            piece, block = xs[..., left : left + width], weight[rows, left : left + width]
            left += width
            total += sum(part @ block.T for part in _quantized_parts(piece, layout, buffers, branch, j))
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


def _quantized_parts(piece: Tensor, layout: Any, buffers: dict[str, Tensor], branch: int, j: int) -> list[Tensor]:
    spec = layout.scheme.input
    if spec is None:
        return [piece]
    high = 448.0 if spec.dtype == "fp8" else 2.0 ** (spec.bits - 1) - 1
    low = 448.0 if spec.dtype == "fp8" else high + 1
    signed = layout.input_grid.dual[j]
    if layout.second_scale == "input_zero":
        return [_one_grid(piece, spec, buffers, branch, j, signed)]
    if spec.dynamic:
        dims = -1 if spec.granularity != "tensor" else None
        amax = piece.abs().amax(dims, keepdim=True) if dims else piece.abs().amax()
        pos, neg = piece.clamp_min(0).abs(), piece.clamp_max(0).abs()
        above = pos.amax(-1, keepdim=True) / high if signed else amax / high
        below = neg.amax(-1, keepdim=True) / low if signed else above
    else:
        above = buffers["input_scale"][branch, j].double()
        below = buffers[layout.second_scale or "input_scale"][branch, j].double()
    return [
        _round(piece.clamp_min(0), above, spec.dtype, low, high),
        _round(piece.clamp_max(0), below, spec.dtype, low, high),
    ]


def _one_grid(piece: Tensor, spec: Any, buffers: dict[str, Tensor], branch: int, j: int, signed: bool) -> Tensor:
    """Unsigned codes 0 … 2^bits − 1, less the zero point."""
    top, half = 2.0**spec.bits - 1, 2.0 ** (spec.bits - 1)
    if spec.dynamic:
        pos, neg = piece.clamp_min(0).amax(-1, keepdim=True), (-piece).clamp_min(0).amax(-1, keepdim=True)
        scale = (pos + neg) / top if signed else torch.maximum(pos, neg) / (half - 1)
        zero = (neg / scale).round() if signed else torch.full_like(scale, half)
    else:
        scale, zero = buffers["input_scale"][branch, j].double(), buffers["input_zero"][branch, j].double()
    codes = ((piece / scale).round() + zero).clamp(0, top)
    return (codes - zero) * scale


def _round(x: Tensor, scale: Tensor | float, dtype: str, low: float, high: float) -> Tensor:
    codes = (x / scale).clamp(-low, high)
    return (codes.float().to(torch.float8_e4m3fn).double() if dtype == "fp8" else codes.round()) * scale


def module_codes(module: Any) -> Tensor:
    codes, dtype = module.codes, module.layout.weight_spec.dtype
    if dtype == "fp8":
        return codes.view(torch.float8_e4m3fn).double()
    if dtype == "int8":
        return codes.double()
    both = torch.stack((codes.int() & 15, codes.int() >> 4), -1).flatten(1)[:, : module.in_features].double()
    return torch.where(both > 7, both - 16, both)
