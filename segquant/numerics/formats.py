"""Number formats and named precisions: frozen, validated, JSON-ready."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from segquant import registry
from segquant.checks import check_fields, described, require
from segquant.errors import QuantizationError, nearest

Dtype = Literal["int8", "int4", "fp8"]
Granularity = Literal["tensor", "channel", "token", "group"]

DTYPES = ("int8", "int4", "fp8")
GRANULARITIES = ("tensor", "channel", "token", "group")


def check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {what} {described(value)}; {nearest(str(value), choices)}")


def refuse_unknown(kind: type, values: Mapping[str, Any]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    for key in values:
        if key not in names:
            raise ValueError(f"{kind.__name__} has no field {described(key)}; {nearest(str(key), names)}")


@dataclass(frozen=True)
class QuantSpec:
    """Format of one tensor.

    Args:
        dtype: "int8", "int4" (symmetric signed) or "fp8" (e4m3fn).
        granularity: what shares a scale: "tensor" (or segment), "channel" (weight row), "token" (activation row) or
            "group" (consecutive input channels of a row).
        group_size: input channels per group; only with "group".
        dynamic: scales taken at run time (activations only).
    """

    dtype: Dtype
    granularity: Granularity = "tensor"
    group_size: int | None = None
    dynamic: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("granularity", self.granularity, GRANULARITIES)
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError(
                f"granularity {self.granularity!r} with group_size={self.group_size}; "
                "give a group_size with granularity 'group' and with no other"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, not {self.group_size}")

    @property
    def bits(self) -> int:
        """Bits per code."""
        return 4 if self.dtype == "int4" else 8


@dataclass(frozen=True)
class QuantScheme:
    """Format of a layer's weight and input; None stays floating point."""

    weight: QuantSpec | None
    input: QuantSpec | None
    slot: ClassVar[str] = "precision"

    def __post_init__(self) -> None:
        check_fields(self)
        weight, inputs = self.weight, self.input
        if weight is not None and (weight.dynamic or weight.granularity == "token"):
            raise ValueError("a weight is quantized once: granularity 'token' and dynamic=True are for inputs")
        if inputs is None:
            return
        if weight is None:
            raise ValueError("a quantized input needs a quantized weight; give weight a QuantSpec")
        if inputs.granularity == "channel":
            raise ValueError("per-channel inputs cannot be taken out of the product; use tensor, token or group")
        if inputs.granularity in ("token", "group") and not inputs.dynamic:
            raise ValueError(
                f"granularity {inputs.granularity!r} of an input is only known at run time; set dynamic=True"
            )

    @property
    def static_input(self) -> bool:
        """Whether calibration fixes the input's scales."""
        return self.input is not None and not self.input.dynamic

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantScheme:
        """Inverse of `dataclasses.asdict`; unknown keys raise ValueError."""
        require(values, Mapping[str, Any], "QuantScheme.from_dict", "values", "the formats of weight and input")
        refuse_unknown(cls, values)
        specs = {}
        for side in ("weight", "input"):
            spec = values.get(side)
            if isinstance(spec, Mapping):
                refuse_unknown(QuantSpec, spec)
                if "dtype" not in spec:
                    raise ValueError(f"the {side} format {dict(spec)} has no dtype; {nearest('', DTYPES)}")
                spec = QuantSpec(**spec)
            specs[side] = spec
        return cls(**specs)


_CHANNEL_INT8 = QuantSpec("int8", "channel")
_STATIC_INT8 = QuantSpec("int8", "tensor")
_TOKEN_INT8 = QuantSpec("int8", "token", dynamic=True)

PRECISIONS: dict[str, QuantScheme] = registry.table("precision")
"""Named schemes; `segquant.register(scheme, name=…)` adds one."""
PRECISIONS |= {
    "w8a8_tensor": QuantScheme(QuantSpec("int8", "tensor"), _STATIC_INT8),
    "w8a8": QuantScheme(_CHANNEL_INT8, _STATIC_INT8),
    "w8a8_dynamic": QuantScheme(_CHANNEL_INT8, _TOKEN_INT8),
    "fp8": QuantScheme(QuantSpec("fp8", "channel"), QuantSpec("fp8", "tensor")),
    "w4a8_channel": QuantScheme(QuantSpec("int4", "channel"), _TOKEN_INT8),
    "w4a8": QuantScheme(QuantSpec("int4", "group", 32), _TOKEN_INT8),
    "w4a4": QuantScheme(QuantSpec("int4", "group", 64), QuantSpec("int4", "group", 64, dynamic=True)),
    "w4a16": QuantScheme(QuantSpec("int4", "group", 64), None),
}


Precision = str | QuantScheme | Mapping[str, Any]
"""A name in PRECISIONS, a scheme, or a scheme's fields as saved."""


def scheme_of(precision: Precision) -> QuantScheme:
    """The scheme of a precision, else ValueError."""
    if isinstance(precision, QuantScheme):
        return precision
    if isinstance(precision, Mapping):
        return QuantScheme.from_dict(precision)
    if not isinstance(precision, str):
        raise QuantizationError(
            f"precision is {described(precision)}; give a name ({', '.join(PRECISIONS)}) or a QuantScheme"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; {nearest(precision, PRECISIONS)}")
    return PRECISIONS[precision]


def precision_name(precision: Precision) -> str:
    scheme = scheme_of(precision)
    return next((name for name, known in PRECISIONS.items() if known == scheme), "this precision")
