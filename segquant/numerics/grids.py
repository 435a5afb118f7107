"""Element formats: the values that a code can hold, rounding to them, and the codes themselves.

Integers as in two's complement (int) or from zero (uint). Small floats as in OCP's formats: e4m3 and e5m2 ("OCP 8-bit
Floating Point", 1.0), e2m3, e3m2 and e2m1 ("OCP Microscaling Formats (MX)", 1.0, section 5.3), saturating; nf4 as in
QLoRA (arXiv 2305.14314, appendix E). Ties go to the even code, of nf4 to the lower value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor


class Grid(ABC):
    """What one number of a format can be, in units of its scale.

    Attributes:
        bits: of a code.
        low, high: the extreme values.
    """

    bits: int
    low: float
    high: float
    kind: ClassVar[str]
    """"int", "uint", "fp" or "nf"."""

    @property
    def exponent(self) -> int:
        """Of the largest power of two that it can hold (emax of the MX specification)."""
        return math.floor(math.log2(self.high))

    @abstractmethod
    def round_(self, values: Tensor) -> Tensor:
        """The nearest value that there is, of float32 or float64 [...], which may be overwritten."""

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """Codes of values that are on the grid: int8 for "int", else uint8 or float8."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """float32 values of codes as `encode` gives them or, for 8-bit floats, of their bytes."""

    @abstractmethod
    def cell(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The lower neighbour, and the distance to the next; values beyond the grid get its outermost cell."""


@dataclass(frozen=True)
class Integer(Grid):
    """All whole numbers from `low` to `high`."""

    bits: int
    signed: bool = True

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "int" if self.signed else "uint"

    @property
    def low(self) -> float:  # type: ignore[override]
        return float(-(1 << (self.bits - 1))) if self.signed else 0.0

    @property
    def high(self) -> float:  # type: ignore[override]
        return self.low + (1 << self.bits) - 1

    def round_(self, values: Tensor) -> Tensor:
        return values.round_().clamp_(self.low, self.high)

    def encode(self, values: Tensor) -> Tensor:
        return values.to(torch.int8 if self.signed else torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float()

    def cell(self, values: Tensor) -> tuple[Tensor, Tensor]:
        lower = values.floor().clamp_(self.low, self.high - 1)
        return lower, torch.ones_like(lower)


class _Listed(Grid):
    """Values that are looked up, [codes], in the order of the codes."""

    @abstractmethod
    def values(self, device: torch.device) -> Tensor:
        """float32 by code; codes beyond the format's are left out."""

    def decode(self, codes: Tensor) -> Tensor:
        # not index_select, which wants indices of eight bytes
        return self.values(codes.device)[codes.int()]

    def cell(self, values: Tensor) -> tuple[Tensor, Tensor]:
        known = self.values(values.device).to(values.dtype)
        steps = torch.unique(known[known.isfinite()])
        index = torch.searchsorted(steps, values.contiguous(), right=True).sub_(1).clamp_(0, len(steps) - 2)
        return steps[index], steps[index + 1] - steps[index]


@dataclass(frozen=True)
class Minifloat(_Listed):
    """A float of a sign, `exponents` and `mantissas` bits, without inf or NaN, its exponents biased as in IEEE 754."""

    exponents: int
    mantissas: int
    kind: ClassVar[str] = "fp"

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 1 + self.exponents + self.mantissas

    @property
    def bias(self) -> int:
        return (1 << (self.exponents - 1)) - 1

    @property
    def high(self) -> float:  # type: ignore[override]
        return (2 - 2.0**-self.mantissas) * 2.0 ** ((1 << self.exponents) - 1 - self.bias)

    @property
    def low(self) -> float:  # type: ignore[override]
        return -self.high

    def round_(self, values: Tensor) -> Tensor:
        return _round_mantissas(values.clamp_(self.low, self.high), self.mantissas, 1 - self.bias)

    def values(self, device: torch.device) -> Tensor:
        return _minifloats(self.exponents, self.mantissas).to(device)

    def encode(self, values: Tensor) -> Tensor:
        half = 1 << (self.bits - 1)
        known = self.values(values.device)[:half].to(values.dtype)
        index = torch.searchsorted(known, values.abs().contiguous())
        return (index + half * torch.signbit(values)).to(torch.uint8)


def _round_mantissas(values: Tensor, mantissas: int, least: int) -> Tensor:
    """Mantissas of `mantissas` bits, exponents from `least`; a negative number's zero has no sign."""
    wide = values.dtype == torch.float64
    digits, kind = (52, torch.int64) if wide else (23, torch.int32)
    mask = ((1 << 11) - 1 << 52) if wide else (0xFF << 23)
    power = (values.view(kind) & mask).view(values.dtype).clamp_min_(2.0**least)
    # a sum whose last place is the format's: the processor's own rounding, to even
    power.mul_(1.5 * 2.0 ** (digits - mantissas))
    return values.add_(power).sub_(power)


@lru_cache(maxsize=16)
def _minifloats(exponents: int, mantissas: int) -> Tensor:
    bias, steps = (1 << (exponents - 1)) - 1, 1 << mantissas
    found = []
    for code in range(1 << (exponents + mantissas)):
        exponent, fraction = divmod(code, steps)
        normal = exponent > 0
        found.append((normal + fraction / steps) * 2.0 ** (max(exponent, 1) - bias))
    with torch.inference_mode(False):
        half = torch.tensor(found, dtype=torch.float32, device="cpu")
        return torch.cat((half, -half))


@dataclass(frozen=True)
class Float8(_Listed):
    """An 8-bit float that torch has. Its cast rounds alike, but slower, and takes float64 to float32 first."""

    dtype: torch.dtype
    high: float
    mantissas: int
    least: int  # of the exponents of normal numbers
    kind: ClassVar[str] = "fp"
    bits: int = field(default=8, init=False)

    @property
    def low(self) -> float:  # type: ignore[override]
        return -self.high

    def round_(self, values: Tensor) -> Tensor:
        return _round_mantissas(values.clamp_(self.low, self.high), self.mantissas, self.least)

    def encode(self, values: Tensor) -> Tensor:
        return values.to(self.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.view(self.dtype).float()

    def values(self, device: torch.device) -> Tensor:
        return torch.arange(256, dtype=torch.uint8, device=device).view(self.dtype).float()


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""QLoRA, appendix E: quantiles of the normal distribution, with an exact zero."""


@dataclass(frozen=True)
class Table(_Listed):
    """Values in rising order, one per code."""

    entries: tuple[float, ...]
    kind: ClassVar[str] = "nf"

    @property
    def bits(self) -> int:  # type: ignore[override]
        return (len(self.entries) - 1).bit_length()

    @property
    def low(self) -> float:  # type: ignore[override]
        return self.entries[0]

    @property
    def high(self) -> float:  # type: ignore[override]
        return self.entries[-1]

    @property
    def exponent(self) -> int:
        """One less than of `high`, which is that power itself: numbers up to the next would be cut in half."""
        return super().exponent - 1

    def values(self, device: torch.device) -> Tensor:
        return torch.tensor(self.entries, dtype=torch.float32, device=device)

    def encode(self, values: Tensor) -> Tensor:
        return self._count(values).to(torch.uint8)

    def round_(self, values: Tensor) -> Tensor:
        known, index = self.values(values.device).to(values.dtype), self._count(values).long()
        return known.gather(0, index.reshape(-1)).view(values.shape)

    def _count(self, values: Tensor) -> Tensor:
        """How many of the middles lie below each value, in its dtype; all of them below what is no number."""
        bounds, values = _middles(self.entries, values.dtype), values.detach()
        count, one = torch.full_like(values, len(bounds)), torch.empty_like(values)
        for bound in bounds:  # vectorized, unlike a search
            count.sub_(torch.le(values, bound, out=one))
        return count


@lru_cache(maxsize=16)
def _middles(entries: tuple[float, ...], dtype: torch.dtype) -> tuple[float, ...]:
    """Of neighbours: the last number that is not above, where the dtype has no exact one."""
    with torch.inference_mode(False):
        known = torch.tensor(entries, dtype=torch.float32, device="cpu").double()
        middle = (known[1:] + known[:-1]) / 2
        found = middle.to(dtype)
        found = torch.where(found > middle, found.nextafter(torch.full_like(found, -torch.inf)), found)
        return tuple(found.tolist())


GRIDS: dict[str, Grid] = {
    **{f"int{bits}": Integer(bits) for bits in range(2, 9)},
    **{f"uint{bits}": Integer(bits, signed=False) for bits in range(2, 9)},
    "fp8": Float8(torch.float8_e4m3fn, 448.0, 3, -6),
    "fp8_e5m2": Float8(torch.float8_e5m2, 57344.0, 2, -14),
    "fp6_e2m3": Minifloat(2, 3),
    "fp6_e3m2": Minifloat(3, 2),
    "fp4_e2m1": Minifloat(2, 1),
    "nf4": Table(NF4),
}
"""By the name that `QuantSpec.dtype` has."""
