"""Number formats of a tensor and of a layer: frozen, validated, JSON-ready."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segquant.bounds import at_most
from segquant.checks import check_fields, described, require
from segquant.errors import UnknownHereError, nearest
from segquant.numerics.grids import GRIDS, Grid
from segquant.numerics.scales import K_BITS, SCALE_DTYPES, SUPER

DTYPES = tuple(GRIDS)
ALIASES = {"fp8_e4m3": "fp8"}
"""Other names of a dtype."""
GRANULARITIES = ("tensor", "channel", "token", "group")
_INPUT_SCALES = ("float32", "bfloat16", "float16", "e8m0", "e4m3")
_SIGNED = {"q0": True, "q1": False}
"""Of GGUF's scales: whether their codes are signed."""


def check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {what} {described(value)}; {nearest(str(value), choices)}")


def refuse_unknown(kind: type, values: Mapping[str, Any]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    for key in values:
        if key not in names:
            raise UnknownHereError(f"{kind.__name__} has no field {described(key)}; {nearest(str(key), names)}")


@dataclass(frozen=True)
class QuantSpec:
    """Format of one tensor.

    Args:
        dtype: "int2" … "int8" (signed, symmetric), "uint2" … "uint8" (with a zero point), "fp8" (e4m3fn; also
            "fp8_e4m3"), "fp8_e5m2", "fp6_e2m3", "fp6_e3m2", "fp4_e2m1" or "nf4".
        granularity: what shares a scale: "tensor" (or segment), "channel" (weight row), "token" (activation row) or
            "group" (consecutive input channels of a row).
        group_size: input channels per group; only with "group". It must divide in_features; input segments that it
            does not divide are not cut.
        dynamic: scales taken at run time (activations only).
        scale_dtype: how scales are kept, see `numerics.scales`; "auto" is bfloat16 for groups of weights, which
            loses nothing that can be measured (lab log 22), and float32 else.
        symmetric: False makes int… the uint… of the same bits; it is otherwise what the dtype says.
    """

    dtype: str
    granularity: str = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    scale_dtype: str = "auto"
    symmetric: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "dtype", ALIASES.get(self.dtype, self.dtype))
        if self.dtype not in GRIDS and self.dtype.strip("uint").isdigit():
            raise ValueError(f"no dtype {self.dtype!r}: integers have 2 to 8 bits; choose int2 … int8 or uint2 … uint8")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("granularity", self.granularity, GRANULARITIES)
        if self.scale_dtype == "auto":
            object.__setattr__(self, "scale_dtype", self._auto())
        check_choice("scale_dtype", self.scale_dtype, SCALE_DTYPES)
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError(
                f"granularity {self.granularity!r} with group_size={described(self.group_size)}; "
                "give a group_size with granularity 'group' and with no other"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, not {described(self.group_size)}")
        at_most("group_size", self.group_size)
        self._settle_symmetry()
        self._check_scales()

    def _auto(self) -> str:
        return "bfloat16" if self.granularity == "group" and not self.dynamic else "float32"

    def _settle_symmetry(self) -> None:
        kind = self.grid.kind
        if self.symmetric is False and kind == "int":
            object.__setattr__(self, "dtype", f"u{self.dtype}")
        elif self.symmetric is False and kind != "uint":
            raise ValueError(f"{self.dtype} has no zero point; leave symmetric out, or choose uint{self.bits}")
        elif self.symmetric and kind == "uint":
            raise ValueError(f"{self.dtype} has a zero point; leave symmetric out, or choose {self.dtype[1:]}")
        object.__setattr__(self, "symmetric", not self.zero_point)

    def _check_scales(self) -> None:
        name, signed = self.scale_dtype, self.grid.kind == "int"
        if (name in K_BITS or name in _SIGNED) and self.grid.kind not in ("int", "uint"):
            raise ValueError(f"scale_dtype {name!r} goes with integers, not with {self.dtype}; choose float16")
        if name in _SIGNED and _SIGNED[name] != signed:
            other = "q1" if name == "q0" else "q0"
            raise ValueError(f"scale_dtype {name!r} does not go with {self.dtype}; choose {other!r}")
        if name in K_BITS and (self.group_size is None or SUPER % self.group_size):
            raise ValueError(
                f"scale_dtype {name!r} needs granularity 'group' and a group_size that divides {SUPER}; choose 16 or 32"
            )

    @property
    def grid(self) -> Grid:
        """What a code can be."""
        return GRIDS[self.dtype]

    @property
    def bits(self) -> int:
        """Bits per code."""
        return self.grid.bits

    @property
    def zero_point(self) -> bool:
        """Whether codes count from a zero point, or from the least value."""
        return self.grid.kind == "uint"

    @property
    def block(self) -> int | None:
        """Input channels that belong together; None if all do."""
        return SUPER if self.scale_dtype in K_BITS else self.group_size

    def to_dict(self) -> dict[str, Any]:
        """Its fields; those that the first versions had not only where they say something."""
        values = dataclasses.asdict(self)
        del values["symmetric"]  # as the dtype says
        if self.scale_dtype == "float32" == self._auto():
            del values["scale_dtype"]
        return values


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
            raise ValueError(
                "a weight is quantized once: granularity 'token' and dynamic=True are for inputs; choose 'channel'"
            )
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
        if inputs.scale_dtype not in _INPUT_SCALES:
            raise ValueError(
                f"scale_dtype {inputs.scale_dtype!r} is for weights; inputs take {', '.join(_INPUT_SCALES)}"
            )
        if inputs.scale_dtype == "e4m3" and not inputs.dynamic:
            raise ValueError(
                "scale_dtype 'e4m3' is for scales that share a second one, and a static input has one scale a piece; "
                "choose float32, or granularity 'group' with dynamic=True"
            )

    @property
    def static_input(self) -> bool:
        """Whether calibration fixes the input's scales."""
        return self.input is not None and not self.input.dynamic

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse."""
        return {side: spec and spec.to_dict() for side, spec in (("weight", self.weight), ("input", self.input))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], scale_dtype: str = "float32") -> QuantScheme:
        """Inverse of `to_dict`; unknown keys raise ValueError.

        Args:
            scale_dtype: where none is told; the first versions, which had float32 alone, told none.
        """
        require(values, Mapping[str, Any], "QuantScheme.from_dict", "values", "the formats of weight and input")
        refuse_unknown(cls, values)
        specs = {}
        for side in ("weight", "input"):
            spec = values.get(side)
            if isinstance(spec, Mapping):
                refuse_unknown(QuantSpec, spec)
                if "dtype" not in spec:
                    raise ValueError(f"the {side} format {dict(spec)} has no dtype; {nearest('', DTYPES)}")
                spec = QuantSpec(**{"scale_dtype": scale_dtype, **spec})
            specs[side] = spec
        return cls(**specs)
