"""The section `precision`: number formats of weights and inputs."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from segquant_bench.hints import nearest
from segquant_bench.pipelines.bounds import BOUNDS, within
from segquant_bench.pipelines.config.booleans import FlagOrNull, check_flags
from segquant_bench.pipelines.errors import PipelineError

SIDES = ("weight", "input")
LEAST_BITS, MOST_BITS = BOUNDS["precision.weight.bits"]
_INTEGER = re.compile(r"(u?int)\d*")


@dataclass
class FormatConfig:
    """Fields of a `segquant.QuantSpec`; all null is floating point.

    `bits` is the width of an integer dtype, in place of the one in its name. `granularity` null is group where
    `group_size` is given, else channel of weights, and of inputs token, or tensor if `dynamic` is false. `dynamic` null
    is true of inputs per token or group.
    """

    dtype: str | None = None
    bits: int | None = None
    granularity: str | None = None
    group_size: int | None = None
    dynamic: FlagOrNull = None
    scale_dtype: str | None = None
    symmetric: FlagOrNull = None

    def given(self) -> dict[str, Any]:
        """The fields that are not null."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def settled(self, side: str) -> FormatConfig | None:
        """With what follows from the fields; None is floating point.

        Raises:
            PipelineError: other fields and no dtype, or bits of a dtype that has its own.
        """
        given, key = self.given(), f"precision.{side}"
        for name in ("dtype", "granularity", "scale_dtype"):
            _check_named(f"{key}.{name}", name, given.get(name))
        check_flags(self, f"{key}.")
        if not given:
            return None
        if self.group_size is not None:
            within(f"{key}.group_size", self.group_size)
        if self.dtype is None:
            told = ", ".join(f"{name}={value}" for name, value in given.items())
            raise PipelineError(
                f"{key} has {told} and no dtype; set {key}.dtype, for example int8, or {key}=null for floating point"
            )
        dtype = self.dtype if self.bits is None else _of_width(key, self.dtype, self.bits)
        granularity, dynamic = self.granularity or self._granularity(side), self.dynamic
        if dynamic is None:
            dynamic = side == "input" and granularity in ("token", "group")
        # as QuantSpec's "auto", whose module takes torch
        scale_dtype = self.scale_dtype or ("bfloat16" if granularity == "group" and not dynamic else "float32")
        return FormatConfig(dtype, None, granularity, self.group_size, dynamic, scale_dtype, self.symmetric)

    def _granularity(self, side: str) -> str:
        if self.group_size is not None:
            return "group"
        if side == "weight":
            return "channel"
        return "tensor" if self.dynamic is False else "token"

    def fields(self) -> dict[str, Any]:
        """Of a settled one: the arguments of a `QuantSpec`."""
        return {key: value for key, value in asdict(self).items() if key != "bits"}


def _check_named(key: str, name: str, value: str | None) -> None:
    """Names of formats are looked up where they are made; an empty one would be taken for null."""
    if value is None or value.strip():
        return
    from segquant.numerics.formats import DTYPES, GRANULARITIES  # torch: only for the sentence
    from segquant.numerics.scales import SCALE_DTYPES

    known = {"dtype": DTYPES, "granularity": GRANULARITIES, "scale_dtype": SCALE_DTYPES}[name]
    what = "for floating point" if name == "dtype" else "for what follows from the other fields"
    raise PipelineError(f"{key} is empty; {nearest(value, known)}; give one of them, or null {what}")


def _of_width(key: str, dtype: str, bits: int) -> str:
    found = _INTEGER.fullmatch(dtype)
    if found is None:
        raise PipelineError(
            f"{key}.bits={bits} does not go with {key}.dtype={dtype}: only int and uint have a width of choice; leave "
            f"bits out, or set {key}.dtype=int{min(max(bits, LEAST_BITS), MOST_BITS)}"
        )
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise PipelineError(
            f"{key}.bits={bits} is out of range: integers have {LEAST_BITS} to {MOST_BITS} bits; set "
            f"{key}.bits={min(max(bits, LEAST_BITS), MOST_BITS)}"
        )
    return f"{found[1]}{bits}"


@dataclass
class PrecisionConfig:
    """A name of `segquant.PRECISIONS`, or formats of weights and inputs; null is floating point.

    Or `_target_` names a function that returns a `segquant.QuantScheme`. Once validated, formats are settled.
    """

    name: str = MISSING
    weight: FormatConfig | None = field(default_factory=FormatConfig)
    input: FormatConfig | None = field(default_factory=FormatConfig)
    _target_: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weight is None and self.input is None and self._target_ is None:
            raise PipelineError(
                "precision.weight and precision.input are both null, which quantizes nothing; give the weight a "
                "format, or choose quantizer=none"
            )
        found = {side: self._settled(side) for side in SIDES}
        if self._target_ is not None and any(found.values()):
            raise PipelineError(f"precision {self.name} has both _target_ and weight or input; leave one of them out")
        if self._target_ is None and self.arguments:
            raise PipelineError(f"precision {self.name} has arguments and no _target_ to give them to; set one")
        if found["weight"] is None and found["input"] is not None:
            raise PipelineError(
                "precision quantizes inputs alone, whose products stay in floating point then; set "
                "precision.weight.dtype, for example int8, or precision.input=null"
            )
        if found["weight"] is not None:
            self.weight, self.input = found["weight"], found["input"]

    def _settled(self, side: str) -> FormatConfig | None:
        given = getattr(self, side)
        return None if given is None else given.settled(side)

    @property
    def has_fields(self) -> bool:
        """Whether formats are told; else the name or `_target_` tells them."""
        return self.weight is not None and self.weight.dtype is not None

    def fields(self) -> dict[str, Any]:
        """By side: the arguments of a `QuantSpec`, or None."""
        sides = {side: getattr(self, side) for side in SIDES}
        return {side: each.fields() if each is not None and each.dtype else None for side, each in sides.items()}
