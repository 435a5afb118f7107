"""Hadamard rotation against scipy's matrices: orthonormal, exact before rounding, and it spreads outliers."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch

from segquant.numerics import functional as F
from segquant.numerics.hadamard import (
    MIN_BLOCK,
    hadamard_blocks,
    random_signs,
    regular_block,
    rotate,
    rotate_regular,
    unrotate,
)

WIDTHS = (1, 2, 12, 13, 16, 48, 64, 100, 384, 1536)


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(blocks: tuple[int, ...], signs: torch.Tensor) -> torch.Tensor:
    """diag(signs) · blockdiag(H/√n), written out."""
    dense = scipy.linalg.block_diag(*(scipy.linalg.hadamard(size) / size**0.5 for size in blocks))
    return signs.double()[:, None] * torch.from_numpy(dense)


def test_blocks_are_powers_of_two_that_fill_the_width() -> None:
    for width in range(1, 600):
        blocks = hadamard_blocks(width)
        assert sum(blocks) == width and all(size & (size - 1) == 0 for size in blocks)
        if width % MIN_BLOCK == 0:
            assert len(set(blocks)) == 1 and width % (2 * blocks[0])
        else:
            assert len(blocks) == width.bit_count() and list(blocks) == sorted(blocks, reverse=True)
    assert hadamard_blocks(384) == (128,) * 3 and hadamard_blocks(100) == (64, 32, 4)
    assert hadamard_blocks(8) == (8,) and hadamard_blocks(6144) == (2048,) * 3


@pytest.mark.parametrize("width", WIDTHS)
def test_rotation_is_scipys_matrix(width: int) -> None:
    blocks, signs = hadamard_blocks(width), random_signs(width, 3)
    x = tensor(2, 5, width)
    before = x.clone()
    found = rotate(x, blocks, signs)
    assert found.dtype == torch.float64 and torch.equal(x, before)
    torch.testing.assert_close(found, x @ matrix(blocks, signs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_rotation_is_orthonormal_and_undone(width: int) -> None:
    blocks, signs = hadamard_blocks(width), random_signs(width, 1)
    q = rotate(torch.eye(width, dtype=torch.float64), blocks, signs)
    torch.testing.assert_close(q @ q.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)
    x = tensor(7, width)
    torch.testing.assert_close(unrotate(rotate(x, blocks, signs), blocks, signs), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotate(unrotate(x, blocks, signs), blocks, signs), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    blocks, signs = hadamard_blocks(96), random_signs(96, 0)
    x = tensor(9, 96).to(dtype)
    found = rotate(x, blocks, signs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double() @ matrix(blocks, signs), rtol=1e-5, atol=1e-5)


def test_linear_is_exact_before_rounding_and_better_after_with_an_outlier() -> None:
    blocks, signs = hadamard_blocks(192), random_signs(192, 0)
    x, weight = tensor(64, 192), tensor(40, 192, seed=1)
    x[:, 17] *= 50
    rotated, turned = rotate(x, blocks, signs), rotate(weight, blocks, signs)
    torch.testing.assert_close(rotated @ turned.T, x @ weight.T, rtol=1e-9, atol=1e-9)

    def error(inputs: torch.Tensor, rows: torch.Tensor) -> float:
        scale = F.choose_scale(inputs.abs().amax(-1, keepdim=True), "int4")
        return float((F.fake_quantize(inputs, scale, "int4") @ rows.T - x @ weight.T).norm())

    assert error(rotated, turned) < 0.5 * error(x, weight)


def test_an_outlier_channel_is_spread_over_its_block() -> None:
    """One channel of size a becomes a/√n in each of its n channels, and nothing leaks out of the block."""
    blocks, signs = (64, 64), random_signs(128, 5)
    x = torch.zeros(3, 128)
    x[:, 70] = 40.0
    found = rotate(x, blocks, signs)
    torch.testing.assert_close(found[:, 64:].abs(), torch.full((3, 64), 5.0))
    assert not found[:, :64].any()


def test_signs_are_seeded_balanced_and_private() -> None:
    state = torch.get_rng_state()
    signs = random_signs(4096, 7)
    assert torch.equal(state, torch.get_rng_state())
    assert signs.dtype == torch.int8 and set(signs.tolist()) == {-1, 1}
    assert abs(int(signs.sum())) < 5 * 64
    assert torch.equal(signs, random_signs(4096, 7)) and not torch.equal(signs, random_signs(4096, 8))


def test_rotation_lets_gradients_through() -> None:
    blocks, signs = hadamard_blocks(20), random_signs(20, 0)
    x = tensor(3, 20).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: rotate(v, blocks, signs), (x,))


@pytest.mark.parametrize("blocks, signs", [((3, 5), 8), ((4, 2), 8), ((8,), 6), ((8, 0), 8)])
def test_blocks_that_do_not_fit_are_named(blocks: tuple[int, ...], signs: int) -> None:
    with pytest.raises(ValueError, match=r"hadamard_blocks\(8\)"):
        rotate(torch.zeros(2, 8), blocks, random_signs(signs, 0))
    with pytest.raises(ValueError, match="at least 1"):
        hadamard_blocks(0)


def regular(size: int) -> torch.Tensor:
    """The Kronecker power of H4, entry by entry: one factor per two bits of row and column."""
    entries = [[1.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(size):
            for digit in range(0, size.bit_length() - 1, 2):
                entries[i][j] *= -1 if (i >> digit & 3) + (j >> digit & 3) == 3 else 1
    return torch.tensor(entries, dtype=torch.float64) / size**0.5


@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_regular_rotation_is_the_power_of_h4(size: int) -> None:
    x = tensor(2, 3, 2 * size)
    before = x.clone()
    dense = torch.block_diag(regular(size), regular(size))
    torch.testing.assert_close(rotate_regular(x, size), x @ dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotate_regular(rotate_regular(x, size), size), x, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_rows_and_columns_of_regular_matrices_have_one_sum(size: int) -> None:
    """So that a constant is spread evenly, where Sylvester's matrix puts all of it into one channel."""
    eye = torch.eye(size, dtype=torch.float64)
    found = rotate_regular(eye, size)
    for dimension in (0, 1):
        torch.testing.assert_close(found.sum(dimension), torch.ones(size, dtype=torch.float64), rtol=0, atol=1e-9)
    ones = torch.ones(1, size, dtype=torch.float64)
    assert float(rotate_regular(ones, size).abs().amax()) == pytest.approx(1)
    assert float(rotate(ones, (size,), torch.ones(size, dtype=torch.int8)).abs().amax()) == pytest.approx(size**0.5)


def test_regular_blocks_are_the_largest_power_of_four_that_fits() -> None:
    for width in range(1, 1100):
        fitting = [4**k for k in range(5) if width % 4**k == 0]
        assert regular_block(width, 256) == max(fitting)
        assert regular_block(width, 16) == max(size for size in fitting if size <= 16)
    for size in (0, 1, 2, 8, 128, 255):
        with pytest.raises(ValueError, match=f"its size is 4, 16, 64, 256 …, not {size}"):
            regular_block(512, size)
    with pytest.raises(ValueError, match="a width of at least 1"):
        regular_block(0, 256)
