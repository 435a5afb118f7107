"""Codes of fewer than eight bits, packed without gaps: code j of a row takes bits j·n … j·n + n − 1, lowest first."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_width(columns: int, bits: int) -> int:
    """Bytes of a row."""
    return (columns * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., n], int8 or uint8, to uint8 [..., ceil(n · bits / 8)]; the last byte is filled with zeros.

    Eight codes of three bits take three bytes; of four bits, even columns take the low nibble.
    """
    if bits == 8:
        return codes.contiguous().view(torch.uint8)
    count = codes.shape[-1]
    if count % 8:
        codes = torch.nn.functional.pad(codes, (0, -count % 8))
    eight = codes.contiguous().view(torch.uint8).unflatten(-1, (-1, 8)) & ((1 << bits) - 1)
    found = []
    for byte in range(bits):
        value = torch.zeros_like(eight[..., 0])
        for index in range(8):
            place = index * bits - 8 * byte
            if -bits < place < 8:
                value |= eight[..., index] << place if place >= 0 else eight[..., index] >> -place
        found.append(value)
    return torch.stack(found, -1).flatten(-2)[..., : packed_width(count, bits)].contiguous()


def unpack(packed: Tensor, columns: int, bits: int, signed: bool) -> Tensor:
    """Inverse of `pack`: int8 [..., columns], or uint8 of unsigned codes."""
    if bits == 8:
        return packed.view(torch.int8) if signed else packed
    short = -packed.shape[-1] % bits
    if short:
        packed = torch.nn.functional.pad(packed, (0, short))
    some = packed.unflatten(-1, (-1, bits))
    found = []
    for index in range(8):
        byte, place = divmod(index * bits, 8)
        value = some[..., byte] >> place
        if place + bits > 8:
            value = value | (some[..., byte + 1] << (8 - place))
        found.append(value & ((1 << bits) - 1))
    codes = torch.stack(found, -1).flatten(-2)[..., :columns]
    if not signed:
        return codes
    sign = 1 << (bits - 1)  # sign extension
    return ((codes ^ sign).to(torch.int16) - sign).to(torch.int8)
