"""Named precisions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from segquant import registry
from segquant.checks import described
from segquant.errors import QuantizationError, nearest
from segquant.numerics.formats import DTYPES, QuantScheme, QuantSpec

_CHANNEL_INT8 = QuantSpec("int8", "channel")
_STATIC_INT8 = QuantSpec("int8", "tensor")
_TOKEN_INT8 = QuantSpec("int8", "token", dynamic=True)


def _alike(dtype: str, group: int, scale_dtype: str) -> QuantScheme:
    """Weights and inputs in groups of one format."""
    return QuantScheme(
        QuantSpec(dtype, "group", group, scale_dtype=scale_dtype),
        QuantSpec(dtype, "group", group, dynamic=True, scale_dtype=scale_dtype),
    )


def _weights(dtype: str, group: int, scale_dtype: str = "auto") -> QuantScheme:
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

NAMED: dict[str, QuantScheme] = dict(PRECISIONS)
"""Those that come with the library, which names are made from: what else is registered changes none."""

Precision = str | QuantScheme | Mapping[str, Any]
"""A name in PRECISIONS, one that `precision_name` gives, a scheme, or a scheme's fields."""

_CODES = {name: name.replace("_", "") for name in DTYPES if not name.startswith(("int", "uint"))}
_CODES |= {name: name.removeprefix("int").replace("uint", "u") for name in DTYPES if name not in _CODES}
_DTYPES = {code: name for name, code in _CODES.items()}
_FLOAT = "16"
_DYNAMIC = "dynamic"
"""Of an input with one scale, taken at run time."""
_SIDE = rf"({'|'.join(sorted(_DTYPES, key=len, reverse=True))})(tensor|channel|token|{_DYNAMIC}|g\d+)(?:-(\w+))?"
_NAME = re.compile(rf"w{_SIDE}_a(?:{_FLOAT}|{_SIDE})")


def scheme_of(precision: Precision) -> QuantScheme:
    """The scheme of a precision, else ValueError."""
    if isinstance(precision, QuantScheme):
        return precision
    if isinstance(precision, Mapping):
        return QuantScheme.from_dict(precision, scale_dtype="auto")
    if not isinstance(precision, str):
        raise QuantizationError(
            f"precision is {described(precision)}; give a name ({', '.join(PRECISIONS)}) or a QuantScheme"
        )
    found = PRECISIONS.get(precision) or _read(precision)
    if found is None:
        raise ValueError(f"unknown precision {precision!r}; {nearest(precision, PRECISIONS)}")
    return found


def precision_name(precision: Precision) -> str:
    """The name of a scheme in NAMED, or one made of its fields, which `scheme_of` reads: "w6g128_a8token".

    Weights and inputs: dtype (u of uint), granularity ("dynamic": one scale of an input, taken at run time), and
    "-SCALE_DTYPE" where it is not what "auto" gives. "float" quantizes nothing. Letters, digits, _ and - alone.

    >>> precision_name(QuantScheme(QuantSpec("uint3", "group", 64, scale_dtype="float16"), None))
    'wu3g64-float16_a16'
    """
    scheme = scheme_of(precision)
    known = next((name for name, each in NAMED.items() if each == scheme), None)
    if known is not None:
        return known
    return "float" if scheme.weight is None else f"w{_told(scheme.weight)}_a{_told(scheme.input)}"


def _told(spec: QuantSpec | None) -> str:
    if spec is None:
        return _FLOAT
    grain = f"g{spec.group_size}" if spec.group_size else spec.granularity
    if spec.dynamic and spec.granularity == "tensor":
        grain = _DYNAMIC
    scale = "" if spec == replace(spec, scale_dtype="auto") else f"-{spec.scale_dtype}"
    return f"{_CODES[spec.dtype]}{grain}{scale}"


def _read(name: str) -> QuantScheme | None:
    """Inverse of `precision_name`, of names that it makes; ValueError where the formats do not go together."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    inputs = None if found[4] is None else _spec(found[4], found[5], found[6], of_input=True)
    return QuantScheme(_spec(found[1], found[2], found[3]), inputs)


def _spec(code: str, grain: str, scale: str | None, of_input: bool = False) -> QuantSpec:
    size = int(grain[1:]) if grain[1:].isdigit() else None
    kind = "group" if size is not None else "tensor" if grain == _DYNAMIC else grain
    dynamic = grain == _DYNAMIC or (of_input and kind in ("token", "group"))
    return QuantSpec(_DTYPES[code], kind, size, dynamic, scale or "auto")
