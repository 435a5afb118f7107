"""Named precisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segquant import registry
from segquant.checks import described
from segquant.errors import QuantizationError, nearest
from segquant.numerics.formats import QuantScheme, QuantSpec

_CHANNEL_INT8 = QuantSpec("int8", "channel")
_STATIC_INT8 = QuantSpec("int8", "tensor")
_TOKEN_INT8 = QuantSpec("int8", "token", dynamic=True)


def _alike(dtype: str, group: int, scale_dtype: str) -> QuantScheme:
    """Weights and inputs in groups of one format."""
    return QuantScheme(
        QuantSpec(dtype, "group", group, scale_dtype=scale_dtype),
        QuantSpec(dtype, "group", group, dynamic=True, scale_dtype=scale_dtype),
    )


def _weights(dtype: str, group: int, scale_dtype: str = "float32") -> QuantScheme:
    """Weights alone, in groups."""
    return QuantScheme(QuantSpec(dtype, "group", group, scale_dtype=scale_dtype), None)


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
    "w4a16": _weights("int4", 64),
    "w8a8_asym": QuantScheme(QuantSpec("uint8", "channel"), QuantSpec("uint8", "tensor")),
    "w4a8_asym": QuantScheme(QuantSpec("uint4", "group", 32), QuantSpec("uint8", "token", dynamic=True)),
    "w6a6": QuantScheme(QuantSpec("int6", "channel"), QuantSpec("int6", "token", dynamic=True)),
    "w4a6": QuantScheme(QuantSpec("int4", "group", 32), QuantSpec("int6", "token", dynamic=True)),
    "w8a16": QuantScheme(_CHANNEL_INT8, None),
    "w3a16": _weights("int3", 64),
    "w2a16": _weights("int2", 32),
    "w4a16_nf4": _weights("nf4", 64),
    "fp8_dynamic": QuantScheme(QuantSpec("fp8", "channel"), QuantSpec("fp8", "token", dynamic=True)),
    "mxfp8": _alike("fp8", 32, "e8m0"),
    "mxfp6": _alike("fp6_e2m3", 32, "e8m0"),
    "mxfp4": _alike("fp4_e2m1", 32, "e8m0"),
    "mxint8": _alike("int8", 32, "e8m0"),
    "nvfp4": _alike("fp4_e2m1", 16, "e4m3"),
    "q8_0": _weights("int8", 32, "float16"),
    "q4_0": _weights("int4", 32, "q0"),
    "q4_1": _weights("uint4", 32, "q1"),
    "q5_0": _weights("int5", 32, "q0"),
    "q5_1": _weights("uint5", 32, "q1"),
    "q2_k": _weights("uint2", 16, "k4"),
    "q3_k": _weights("int3", 16, "k6"),
    "q4_k": _weights("uint4", 32, "k6"),
    "q5_k": _weights("uint5", 32, "k6"),
    "q6_k": _weights("int6", 16, "k8"),
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
