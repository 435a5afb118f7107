"""Packed codes against one whole number per row, bit by bit."""

from __future__ import annotations

import random

import pytest
import torch

from segquant.numerics.packing import pack, packed_width, unpack

BITS = range(2, 9)


def codes_of(rows: int, columns: int, bits: int, signed: bool, seed: int = 0) -> list[list[int]]:
    """Random codes with both ends among them."""
    draw = random.Random(seed)
    low = -(1 << (bits - 1)) if signed else 0
    high = low + (1 << bits) - 1
    return [[draw.choice((low, high, draw.randint(low, high))) for _ in range(columns)] for _ in range(rows)]


def bytes_of(row: list[int], bits: int) -> list[int]:
    """The row as one little-endian whole number, code j at bit j·bits."""
    whole = sum((code % (1 << bits)) << (place * bits) for place, code in enumerate(row))
    return list(whole.to_bytes((len(row) * bits + 7) // 8, "little"))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_every_length_is_the_whole_numbers_bytes(bits: int, signed: bool) -> None:
    kind = torch.int8 if signed else torch.uint8
    for columns in (*range(1, 34), 63, 64, 65, 250):
        rows = codes_of(3, columns, bits, signed, columns)
        codes = torch.tensor(rows).to(kind)
        packed = pack(codes, bits)
        assert packed.dtype == torch.uint8 and packed.is_contiguous()
        assert packed.tolist() == [bytes_of(row, bits) for row in rows]
        assert packed.shape == (3, packed_width(columns, bits)) == (3, -(-columns * bits // 8))
        again = unpack(packed, columns, bits, signed)
        assert again.dtype == kind and torch.equal(again, codes)


@pytest.mark.parametrize("bits", BITS)
def test_leading_dimensions_and_strides(bits: int) -> None:
    codes = torch.tensor(codes_of(12, 10, bits, True)).to(torch.int8)
    expected = pack(codes, bits)
    for view in (codes.T.contiguous().T, torch.stack((codes, codes), -1)[..., 0]):
        assert torch.equal(pack(view, bits), expected)
    folded = pack(codes.view(3, 4, 10), bits)
    assert torch.equal(folded, expected.view(3, 4, -1))
    assert torch.equal(unpack(folded, 10, bits, True), codes.view(3, 4, 10))
    assert torch.equal(pack(codes[0], bits), expected[0])
    assert torch.equal(unpack(expected.T.contiguous().T, 10, bits, True), codes)


def test_eight_codes_of_three_bits_take_three_bytes() -> None:
    packed = pack(torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.uint8), 3)
    assert packed.tolist() == [[0b10001000, 0b11000110, 0b11111010]]


def test_codes_that_do_not_fill_a_byte_leave_zeros() -> None:
    assert pack(torch.tensor([[-1, -1, -1]], dtype=torch.int8), 3).tolist() == [[0xFF, 0x01]]
    assert pack(torch.tensor([[-1]], dtype=torch.int8), 4).tolist() == [[0x0F]]
