"""How scales are kept: in float32, in fewer bits, or as codes of a scale that several share.

By the name in `QuantSpec.scale_dtype`, see `scales_named`:

    float32, bfloat16, float16  as they are
    e8m0                        a power of two, 2^(⌊log2 amax⌋ − emax) ("OCP Microscaling Formats (MX)", 1.0, 6.3)
    e4m3                        fp8 times a float32 per tensor, max / 448 (NVFP4)
    q0                          float16, signed: the block's extreme has the lowest code (GGUF's q4_0 and q5_0)
    q1                          float16, and the least value in float16 (q4_1, q5_1)
    k4, k6, k8                  codes of 4, 6 or 8 bits times a float16 for 256 weights (q2_k, q3_k … q5_k, q6_k)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.errors import QuantizationError
from segquant.numerics.packing import pack, packed_width, unpack

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
FP8_MAX = 448.0
FP8_LEAST = 2.0**-9
SUPER = 256
"""Weights that share a scale of scales in GGUF's k formats."""
SUPER_SCALE, SECOND = "_super", "_2"


class Scales(ABC):
    """A way to keep positive numbers [rows, columns] as a layer's buffers, whose names begin with `name`."""

    @abstractmethod
    def shapes(self, name: str, rows: int, columns: int, branches: int) -> Shapes:
        """Of the buffers."""

    @abstractmethod
    def store(self, name: str, values: Tensor, *, zeros: bool = False) -> dict[str, Tensor]:
        """Buffers of one branch's numbers, float32 [rows, columns]; those of branches are put below each other.

        Args:
            zeros: whether a positive number may become zero, as no scale may.
        """

    @abstractmethod
    def read(self, name: str, buffers: Mapping[str, Tensor], columns: int, branches: tuple[int, ...]) -> Tensor:
        """Inverse of `store`, but for rounding: float32.

        Args:
            branches: rows of each.
        """


@dataclass(frozen=True)
class Floats(Scales):
    """Rounded to nearest."""

    dtype: torch.dtype

    def shapes(self, name: str, rows: int, columns: int, branches: int) -> Shapes:
        return {name: ((rows, columns), self.dtype)}

    def store(self, name: str, values: Tensor, *, zeros: bool = False) -> dict[str, Tensor]:
        if self.dtype == torch.float16:
            _refuse_beyond_float16(values)
        return {name: rounded(values, self.dtype)}

    def read(self, name: str, buffers: Mapping[str, Tensor], columns: int, branches: tuple[int, ...]) -> Tensor:
        return buffers[name].float()


class Powers(Scales):
    """Exponents, biased by 127; rounds down."""

    def shapes(self, name: str, rows: int, columns: int, branches: int) -> Shapes:
        return {name: ((rows, columns), torch.uint8)}

    def store(self, name: str, values: Tensor, *, zeros: bool = False) -> dict[str, Tensor]:
        return {name: (exponent_of(values) + 127).to(torch.uint8)}

    def read(self, name: str, buffers: Mapping[str, Tensor], columns: int, branches: tuple[int, ...]) -> Tensor:
        return power_of_two(buffers[name].to(torch.int32) - 127)


class Twice(Scales):
    """fp8 codes, times a float32 per branch."""

    def shapes(self, name: str, rows: int, columns: int, branches: int) -> Shapes:
        return {name: ((rows, columns), torch.uint8), name + SECOND: ((branches,), torch.float32)}

    def store(self, name: str, values: Tensor, *, zeros: bool = False) -> dict[str, Tensor]:
        whole = second_scale(values.amax().reshape(1))
        return {name: fp8_of(values / whole).view(torch.uint8), name + SECOND: whole}

    def read(self, name: str, buffers: Mapping[str, Tensor], columns: int, branches: tuple[int, ...]) -> Tensor:
        counts = torch.tensor(branches, dtype=torch.int64, device=buffers[name].device)
        whole = buffers[name + SECOND].repeat_interleave(counts, output_size=sum(branches))
        return buffers[name].view(torch.float8_e4m3fn).float() * whole[:, None]


@dataclass(frozen=True)
class Supers(Scales):
    """Codes of `bits`, packed, times a float16 for `count` neighbours."""

    bits: int
    signed: bool
    count: int

    @property
    def high(self) -> int:
        return (1 << (self.bits - self.signed)) - 1

    def shapes(self, name: str, rows: int, columns: int, branches: int) -> Shapes:
        return {
            name: ((rows, packed_width(columns, self.bits)), torch.uint8),
            name + SUPER_SCALE: ((rows, columns // self.count), torch.float16),
        }

    def store(self, name: str, values: Tensor, *, zeros: bool = False) -> dict[str, Tensor]:
        some = values.unflatten(-1, (-1, self.count))
        largest = some.amax(-1) / self.high
        _refuse_beyond_float16(largest)
        whole = rounded(largest, torch.float16)
        codes = (some / whole.float()[..., None]).nan_to_num_(0).round_().clamp_(0, self.high)
        if not zeros:
            codes = torch.where(some > 0, codes.clamp_min(1), codes)
        codes = codes.flatten(-2)
        kind = torch.int8 if self.signed else torch.uint8
        return {name: pack(codes.to(kind), self.bits), name + SUPER_SCALE: whole}

    def read(self, name: str, buffers: Mapping[str, Tensor], columns: int, branches: tuple[int, ...]) -> Tensor:
        codes = unpack(buffers[name], columns, self.bits, self.signed).float()
        return codes * buffers[name + SUPER_SCALE].float().repeat_interleave(self.count, dim=-1)


def _refuse_beyond_float16(values: Tensor) -> None:
    if bool((values.abs() > torch.finfo(torch.float16).max).any()):
        raise QuantizationError(
            f"a scale of {values.abs().max().item():.3g} is beyond float16, which ends at 65504; choose "
            "scale_dtype='bfloat16'"
        )


def scales_named(scale_dtype: str, group_size: int | None, signed: bool) -> Scales:
    """How scales of a dtype are kept; `signed`: whether the weight's codes are."""
    if scale_dtype in K_BITS:
        assert group_size is not None
        return Supers(K_BITS[scale_dtype], signed, SUPER // group_size)
    return _PLAIN[scale_dtype]


K_BITS = {"k4": 4, "k6": 6, "k8": 8}
_PLAIN: dict[str, Scales] = {
    "float32": Floats(torch.float32),
    "bfloat16": Floats(torch.bfloat16),
    "float16": Floats(torch.float16),
    "q0": Floats(torch.float16),
    "q1": Floats(torch.float16),
    "e8m0": Powers(),
    "e4m3": Twice(),
}
SCALE_DTYPES = (*_PLAIN, *K_BITS)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In another float dtype, but never 0 where the value is not, and at most its largest."""
    limits = torch.finfo(dtype)
    found = values.clamp(-limits.max, limits.max).to(dtype)
    if dtype != torch.float16:
        return found  # whose exponents are float32's
    least = torch.full_like(found, limits.smallest_normal * limits.eps).copysign(values.to(dtype))
    return torch.where((found == 0) & (values != 0), least, found)


def exponent_of(values: Tensor) -> Tensor:
    """⌊log2 v⌋ of positive v, int32, from −126 to 127 (a float32's normal powers of two)."""
    return ((values.float().contiguous().view(torch.int32) >> 23) - 127).clamp_(-126, 127)


def power_of_two(exponent: Tensor) -> Tensor:
    """float32 2^e of int32, exactly; e from −126 to 127."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def second_scale(largest: Tensor) -> Tensor:
    """What fp8 scales are multiplied with, so that the largest becomes 448; 1 where all are zero."""
    found = largest / FP8_MAX
    return torch.where(found > 0, found.clamp_min(torch.finfo(found.dtype).tiny), torch.ones_like(found))


def fp8_of(values: Tensor) -> Tensor:
    """Values as float8_e4m3fn, at least its least."""
    return values.clamp(FP8_LEAST, FP8_MAX).to(torch.float8_e4m3fn)


def without_neighbours(scale_dtype: str) -> str:
    """How a scale is rounded where it is searched for: "e8m0" by its own rule, others later, with their neighbours."""
    return scale_dtype if scale_dtype == "e8m0" else "float32"


def round_scale(scale: Tensor, scale_dtype: str) -> Tensor:
    """Scales on the grid of a dtype that needs no neighbours; others as they are."""
    if scale_dtype in ("bfloat16", "float16", "q0", "q1"):
        return rounded(scale, torch.bfloat16 if scale_dtype == "bfloat16" else torch.float16).to(scale.dtype)
    if scale_dtype == "e8m0":
        return power_of_two(exponent_of(scale)).to(scale.dtype)
    return scale
