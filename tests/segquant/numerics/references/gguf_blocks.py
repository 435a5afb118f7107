"""A layer's buffers as the bytes of GGUF's blocks (ggml-common.h, ggml-quants.c of llama.cpp)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segquant.numerics.packing import unpack
from tests.segquant.numerics.references.support import Kept

Bytes = NDArray[np.uint8]
K_SCALES = {"q2_k": 4, "q3_k": 6, "q4_k": 6, "q5_k": 6, "q6_k": 8}


def blocks(kept: Kept, name: str) -> Bytes:
    """uint8 [out, bytes of a row]; `name` is q8_0, q4_0, q4_1, q5_0, q5_1 or q2_k … q6_k."""
    size = 256 if name in K_SCALES else 32
    codes = kept.codes.to(torch.int32).unflatten(1, (-1, size)).numpy()
    parts = (_k_block if name in K_SCALES else _plain_block)(kept, name, codes)
    return np.concatenate(parts, axis=-1).reshape(codes.shape[0], -1)


def _plain_block(kept: Kept, name: str, codes: NDArray[np.int32]) -> list[Bytes]:
    scale = _halves(kept.buffers["weight_scale"])
    if name == "q8_0":
        return [scale, codes.astype(np.int8).view(np.uint8)]
    bits = int(name[1])
    if name.endswith("0"):
        codes = codes + (1 << (bits - 1))
    least = [_halves(kept.buffers["weight_min"])] if name.endswith("1") else []
    fifth = [_bit_plane(codes, 4)] if bits == 5 else []
    return [scale, *least, *fifth, _nibbles(codes, 32)]


def _k_block(kept: Kept, name: str, codes: NDArray[np.int32]) -> list[Bytes]:
    whole = _halves(kept.buffers["weight_scale_super"])
    scales = _scale_codes(kept, "weight_scale", name)
    if name == "q6_k":
        codes = codes + 32
        return [_nibbles(codes & 15, 128), _crumbs(codes >> 4), scales.astype(np.int8).view(np.uint8), whole]
    if name == "q3_k":
        codes, scales = codes + 4, scales + 32
        return [_masks(codes >> 2), _crumbs(codes & 3), _sixes_of_sixteen(scales), whole]
    mins, least = _scale_codes(kept, "weight_min", name), _halves(kept.buffers["weight_min_super"])
    if name == "q2_k":
        return [(scales | mins << 4).astype(np.uint8), _crumbs(codes), whole, least]
    fifth = [_masks(codes >> 4)] if name == "q5_k" else []
    return [whole, least, _sixes_of_eight(scales, mins), *fifth, _nibbles(codes & 15, 64)]


def _halves(values: Tensor) -> Bytes:
    """float16 [out, blocks] as two bytes each."""
    return values.numpy()[..., None].view(np.uint8)


def _scale_codes(kept: Kept, buffer: str, name: str) -> NDArray[np.int32]:
    """[out, super-blocks, blocks of one]."""
    columns = len(kept.layout.weight_columns)
    signed = buffer == "weight_scale" and not kept.layout.weight_spec.zero_point
    found = unpack(kept.buffers[buffer], columns, K_SCALES[name], signed).to(torch.int32)
    return found.unflatten(1, (-1, 256 // kept.layout.weight_columns[0])).numpy()


def _runs(codes: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    return codes.reshape(*codes.shape[:-1], -1, size)


def _joined(values: NDArray[np.int32]) -> Bytes:
    return values.reshape(*values.shape[:2], -1).astype(np.uint8)


def _nibbles(codes: NDArray[np.int32], run: int) -> Bytes:
    """Of a run of codes the first half in low nibbles, the second in high ones."""
    some = _runs(codes, run)
    low, high = some[..., : run // 2], some[..., run // 2 :]
    return _joined((low & 15) | (high & 15) << 4)


def _crumbs(codes: NDArray[np.int32]) -> Bytes:
    """Two bits each: of a run of 128 codes, byte j has j, j + 32, j + 64, j + 96."""
    four = _runs(codes, 128).reshape(*codes.shape[:2], -1, 4, 32)
    return _joined(sum((four[..., place, :] & 3) << 2 * place for place in range(4)))


def _masks(bits: NDArray[np.int32]) -> Bytes:
    """One bit each of 256 codes: byte j has j, j + 32, …, the first lowest."""
    eight = _runs(bits, 32)
    return _joined(sum((eight[..., place, :] & 1) << place for place in range(8)))


def _bit_plane(codes: NDArray[np.int32], place: int) -> Bytes:
    """One bit each of 32 codes, in their order."""
    return np.packbits((codes >> place & 1).astype(np.uint8), axis=-1, bitorder="little")


def _sixes_of_eight(scales: NDArray[np.int32], mins: NDArray[np.int32]) -> Bytes:
    """Eight pairs of six bits in twelve bytes: the first four whole, of the last four the high bits above those."""
    high = [(some[..., :4] | some[..., 4:] >> 4 << 6) for some in (scales, mins)]
    low = scales[..., 4:] & 15 | (mins[..., 4:] & 15) << 4
    return np.concatenate([*high, low], axis=-1).astype(np.uint8)


def _sixes_of_sixteen(scales: NDArray[np.int32]) -> Bytes:
    """Sixteen of six bits in twelve bytes: low nibbles of j, j + 8, then high pairs of j, j + 4, j + 8, j + 12."""
    low = scales[..., :8] & 15 | (scales[..., 8:] & 15) << 4
    high = sum((scales[..., 4 * place : 4 * place + 4] >> 4) << 2 * place for place in range(4))
    return np.concatenate([low, high], axis=-1).astype(np.uint8)
