"""The operator `segquant_triton::linear`, as torch's compilers and exporters know it, and its launches."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from segquant.errors import QuantizationError
from segquant.kernels.runs import runs_of
from segquant.kernels.triton.plan import MANY, OLDEST, WIDEST, Cut, class_of, cut_of, tiles_for

NAME = "segquant_triton::linear"
torch.library.define(
    NAME,
    "(Tensor x, Tensor codes, Tensor weight_scale, Tensor? bias, Tensor? beside, Tensor? smooth, Tensor? above, "
    "Tensor? below, Tensor? zero, int[] branches, int[] pieces, int[] dual, int[] groups, int weight_bits, "
    "int input_bits, bool zero_point, Tensor? sums, Tensor cuts, Tensor table) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
VALUES = 4096
"""Of the input that a program quantizes at a time."""
INTERPRETED = "TRITON_INTERPRET"
"""Set to 1, kernels run in Python on tensors of the CPU; for tests."""


def interpreted() -> bool:
    return os.environ.get(INTERPRETED) == "1"


@lru_cache(maxsize=8)
def why_not_exact(device: torch.device) -> str | None:
    """Why the kernels do not run on a device, as the end of a sentence; None if they do, and exactly."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"needs an NVIDIA GPU, and the layer is on {device.type}: 'cpu' and 'reference' run there"
    if device.type == "cuda" and torch.version.hip is not None:
        return "needs an NVIDIA GPU, and this is a ROCm build of torch: 'reference' runs there"
    try:
        import triton  # noqa: F401  # a CPU's torch comes without
    except ImportError as error:
        return f"needs the package triton, which cannot be imported ({error}): pip install triton"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST:
            return "needs a GPU of compute capability {}.{}, and this one has {}.{}".format(*OLDEST, *capability)
    with torch.inference_mode(False), torch.no_grad():
        wrong = [bits for bits, dual in ((8, 1), (4, 0)) if not _exact(bits, dual, device)]
    return f"is not exact on this GPU with weights of {wrong} bits" if wrong else None


def _exact(bits: int, dual: int, device: torch.device) -> bool:
    """Whether the largest codes of both signs multiply without saturation."""
    size, low = 64, -(2 ** (bits - 1))
    codes = torch.full((2, size), low, dtype=torch.int8, device=device)
    codes[1] = -low - 1
    stored = codes if bits == 8 else ((codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)).view(torch.uint8)
    x = torch.tensor([[-128.0], [127.0]], dtype=torch.float32, device=device).expand(2, size).contiguous()
    one = torch.ones(2, 1, dtype=torch.float32, device=device)
    cuts, table = tables((size,), (dual,), (size,), device)
    below = one[:1] if dual else None
    found = linear(
        x, stored, one, None, None, None, one[:1], below, None, [2], [size], [dual], [size], bits, 8, False, None, cuts,
        table,
    )  # fmt: skip
    return torch.equal(found.double(), x.double() @ codes.double().T)


def tables(
    pieces: tuple[int, ...], dual: tuple[int, ...], groups: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """int32 [pieces, 3]: start, stop, whether signs are apart; and [runs, 5], see `Run`."""
    cuts, start = [], 0
    for size, flag in zip(pieces, dual, strict=True):
        cuts.append((start, start + size, int(flag)))
        start += size
    table = runs_of(pieces, dual, groups)
    return tuple(torch.tensor(each, dtype=torch.int32, device=device) for each in (cuts, table))  # type: ignore[return-value]


def linear(x: Tensor, *layer: Any) -> Tensor:
    """[rows, in] -> [rows, out], in x's dtype.

    Args:
        layer: as of `segquant_cpu::linear`, and at the end `sums` [runs, out], integers, of the weight's codes (with
            zero points of 8 bits), and the `tables`.
    """
    made: Tensor = torch.ops.segquant_triton.linear(x, *layer)
    return made


def _fake(x: Tensor, codes: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


torch.library.register_fake(NAME, _fake)


@torch.library.impl(NAME, ("cuda", "cpu"))
def _linear(
    x: Tensor, codes: Tensor, weight_scale: Tensor, bias: Tensor | None, beside: Tensor | None, smooth: Tensor | None,
    above: Tensor | None, below: Tensor | None, zero: Tensor | None, branches: Sequence[int],
    pieces: Sequence[int], dual: Sequence[int], groups: Sequence[int], weight_bits: int, input_bits: int,
    zero_point: bool, sums: Tensor | None, cuts: Tensor, table: Tensor,
) -> Tensor:  # fmt: skip
    if not x.is_cuda and not interpreted():
        raise QuantizationError(f"backend 'triton' {why_not_exact(x.device)}")
    # the interpreter cuts bits off where a GPU rounds to bfloat16
    out = x.new_empty(x.shape[0], codes.shape[0], dtype=x.dtype if x.is_cuda else torch.float32)
    steps = cut_of(tuple(pieces), tuple(dual), tuple(groups))
    signs = 0 if not any(dual) else 2 if zero_point else 1
    per_branch = (smooth, above, zero if zero_point else below)
    start = 0
    for branch, size in enumerate(branches if x.shape[0] else ()):
        cut = slice(start, start + size)
        of_outputs = [None if each is None else each[..., cut] for each in (sums, bias, beside)]
        own = [None if each is None else each[branch] for each in per_branch]
        with torch.cuda.device_of(x):  # kernels are launched on the current device
            quantized = _quantize(x, own, cuts, tuple(pieces), signs, input_bits)
            _multiply(
                quantized, codes[cut], weight_scale[cut], of_outputs, table, out[:, cut], steps, signs, weight_bits,
                tuple(groups), tuple(pieces),
            )  # fmt: skip
        start += size
    return out.to(x.dtype)


Quantized = tuple[Tensor, Tensor, Tensor]
"""Codes [rows, in], scales and second scales [rows, pieces]."""


def _quantize(
    x: Tensor, own: Sequence[Tensor | None], cuts: Tensor, pieces: tuple[int, ...], signs: int, bits: int
) -> Quantized:  # fmt: skip
    from segquant.kernels.triton.kernels import quantize  # imports triton, which a CPU's torch comes without

    smooth, above, second = own
    rows, columns = x.shape
    codes = torch.empty(rows, columns, dtype=torch.int8, device=x.device)
    scales = x.new_empty(rows, len(pieces), dtype=torch.float32)
    others = torch.empty_like(scales) if signs else scales
    block = min(1 << (max(pieces) - 1).bit_length(), VALUES)
    each = min(max(VALUES // block, 1), 32, 1 << (rows - 1).bit_length())
    grid = (-(-rows // each), len(pieces))
    align = math.gcd(*pieces, WIDEST)
    quantize[grid](
        x, smooth, above, second, cuts, codes, scales, others, rows, columns, len(pieces),
        top=float(2 ** (bits - 1) - 1), SMOOTH=smooth is not None, STATIC=above is not None, SIGNS=signs, BITS=bits,
        ROWS=each, BLOCK=block, ALIGN=align,
    )  # fmt: skip
    return codes, scales, others


def _multiply(
    quantized: Quantized, weight: Tensor, weight_scale: Tensor, of_outputs: Sequence[Tensor | None], table: Tensor,
    out: Tensor, steps: Cut, signs: int, bits: int, groups: tuple[int, ...], pieces: tuple[int, ...],
) -> None:  # fmt: skip
    (codes, first, second), (sums, bias, beside) = quantized, of_outputs
    (rows, columns), outputs = codes.shape, weight.shape[0]
    split = signs == 1
    accumulators = 1 + (steps.kind > 0) + split

    def grid(chosen: dict[str, Any]) -> tuple[int]:
        return (-(-rows // chosen["BLOCK_M"]) * -(-outputs // chosen["BLOCK_N"]),)

    _tuned(_capability(codes.device), class_of(rows), accumulators)[grid](
        codes, weight, first, second, weight_scale, sums, table, bias, beside, out,
        rows, outputs, columns, weight.stride(0), len(pieces), len(groups), len(steps.runs),
        0 if sums is None else sums.stride(0), 0 if beside is None else beside.stride(0), out.stride(0), class_of(rows),
        RUNS=steps.kind, RUN=steps.equal, GROUP=groups[0], PIECE=pieces[0], RUN_STEP=steps.step, SHARED=steps.shared,
        ALIGN=steps.align, SIGNS=signs, SPLIT=split, LIFTED=sums is not None, BITS=bits, BIAS=bias is not None,
        BESIDE=beside is not None,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else OLDEST


@lru_cache(maxsize=64)
def _tuned(capability: tuple[int, int], rows_class: int, accumulators: int) -> Any:
    """The kernel, which at the first call of a shape takes the fastest of its tiles; which it was is kept on disk."""
    import triton

    from segquant.kernels.triton.kernels import multiply

    tiles = tiles_for(capability, rows_class, accumulators)
    band = 8 if rows_class == MANY else 1
    configs = [
        triton.Config(
            {"BLOCK_M": tile.rows, "BLOCK_N": tile.outputs, "BLOCK_K": tile.step, "BAND": band},
            num_warps=tile.warps, num_stages=tile.stages,
        )
        for tile in tiles
    ]  # fmt: skip
    return triton.autotune(configs[:1] if interpreted() else configs, list(KEYS), cache_results=True)(multiply)


KEYS = ("outputs", "columns", "rows_class", "RUNS", "RUN", "SIGNS", "BITS", "BESIDE")
"""Arguments for which tiles are chosen anew."""
