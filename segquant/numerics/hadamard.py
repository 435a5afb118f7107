"""Randomized Hadamard rotation (QuaRot, arXiv 2404.00456, section 4; QuIP#, 2402.04396).

With orthogonal Q = diag(signs) · blockdiag(H_n / √n, …), X Wᵀ = (X Q)(W Q)ᵀ; outliers spread over their block.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor

from segquant.modules.state import own_state
from segquant.numerics.functional import computed

MIN_BLOCK = 16
"""Equal blocks smaller than this spread outliers too little; unequal but larger ones are taken instead."""
RADIX = 32
"""Widest butterfly that is done as one matrix product with a small Hadamard matrix."""
REGULAR_RADIX = 16
"""Likewise of regular ones, a power of four."""
H4 = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))
"""The smallest regular Hadamard matrix but for 1: all rows and columns have one sum."""


def hadamard_blocks(width: int) -> tuple[int, ...]:
    """Powers of two that sum to `width`: equal ones if at least MIN_BLOCK, else its binary digits, largest first.

    Raises:
        ValueError: width < 1.
    """
    if width < 1:
        raise ValueError(f"a rotation needs a width of at least 1, not {width}")
    divisor = width & -width
    if divisor >= MIN_BLOCK:
        return (divisor,) * (width // divisor)
    return tuple(1 << bit for bit in reversed(range(width.bit_length())) if width >> bit & 1)


def random_signs(width: int, seed: int) -> Tensor:
    """Seeded ±1, int8 [width], on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (width,), generator=generator, dtype=torch.int8, device="cpu") * 2 - 1


def rotate(x: Tensor, blocks: tuple[int, ...], signs: Tensor) -> Tensor:
    """x · diag(signs) · blockdiag(H_n / √n) along the last dimension; differentiable.

    Args:
        x: [..., width], any float dtype; float32 out (float64 stays).
        blocks: powers of two summing to width.
        signs: ±1, [width], on x's device.

    Raises:
        ValueError: blocks or signs do not fit, or a block is no power of two.
    """
    _check(x, blocks, signs)
    values = computed(x)
    return _transform(values * signs.to(values.dtype), blocks)


def unrotate(x: Tensor, blocks: tuple[int, ...], signs: Tensor) -> Tensor:
    """Inverse of `rotate`, same arguments."""
    _check(x, blocks, signs)
    values = computed(x)
    return _transform(values, blocks) * signs.to(values.dtype)


def _check(x: Tensor, blocks: tuple[int, ...], signs: Tensor) -> None:
    width = x.shape[-1]
    if any(size < 1 or size & (size - 1) for size in blocks):
        raise ValueError(f"Hadamard blocks must be powers of two, not {blocks}; use hadamard_blocks({width})")
    if sum(blocks) != width or signs.shape != (width,):
        raise ValueError(
            f"blocks of {sum(blocks)} channels and {signs.numel()} signs do not fit {width} channels; "
            f"use hadamard_blocks({width}) and random_signs({width}, seed)"
        )


def regular_block(width: int, largest: int) -> int:
    """The largest power of four that divides `width`, at most `largest`; 1 if none does.

    Raises:
        ValueError: width < 1, or `largest` is no power of four.
    """
    if width < 1:
        raise ValueError(f"a rotation needs a width of at least 1, not {width}")
    if largest < 4 or largest & (largest - 1) or not largest.bit_length() % 2:
        raise ValueError(f"a regular Hadamard matrix is a power of H4: its size is 4, 16, 64, 256 …, not {largest}")
    while width % largest:
        largest //= 4
    return largest


def rotate_regular(x: Tensor, block: int) -> Tensor:
    """x · blockdiag(H, H, …) along the last dimension, H the regular Hadamard matrix of size `block`, orthonormal.

    H is the Kronecker power of H4, whose rows and columns all sum to 2; it is symmetric, hence its own inverse.
    Differentiable; float32 out (float64 stays).

    Args:
        x: [..., width].
        block: of `regular_block`; 1 leaves x as it is.
    """
    values = computed(x)
    if block == 1:
        return values
    return _hadamard(values.unflatten(-1, (-1, block)), regular=True).flatten(-2)


def _transform(values: Tensor, blocks: tuple[int, ...]) -> Tensor:
    parts, start = [], 0
    for size, run in itertools.groupby(blocks):
        count = len(tuple(run))
        part = values[..., start : start + size * count]
        parts.append(_hadamard(part.unflatten(-1, (count, size))).flatten(-2))
        start += size * count
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _hadamard(values: Tensor, regular: bool = False) -> Tensor:
    """H_{a·b} = H_a ⊗ H_b on the last dimension, orthonormal, a factor of at most RADIX at a time."""
    size, done = values.shape[-1], 1
    while done < size:
        radix = min(REGULAR_RADIX if regular else RADIX, size // done)
        # a matrix of fake tensors, or of a graph that is being captured, must not be kept for others
        kept = type(values) is Tensor and not torch.compiler.is_compiling()
        make = _cached_matrix if kept else _matrix
        matrix = make(radix, values.dtype, values.device, regular)
        folded = values.unflatten(-1, (size // (done * radix), radix, done))
        # the first factor is contiguous: a plain product; the others act on the middle dimension
        folded = folded.squeeze(-1) @ matrix if done == 1 else matrix @ folded
        values, done = folded.reshape(*values.shape), done * radix
    return values


@own_state()
def _matrix(size: int, dtype: torch.dtype, device: torch.device, regular: bool) -> Tensor:
    """Sylvester's, or the regular one."""
    base = H4 if regular else ((1, 1), (1, -1))
    matrix, factor = torch.ones(1, 1, dtype=dtype, device=device), torch.tensor(base, dtype=dtype, device=device)
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, factor)
    scaled: Tensor = matrix * size**-0.5
    return scaled


_cached_matrix = lru_cache(maxsize=64)(_matrix)
