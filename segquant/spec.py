"""What a quantized linear looks like: number formats, granularity, and the named method that fills them in.

All three types are frozen, validated on construction, and survive a JSON round trip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from segquant.errors import nearest

Dtype = Literal["int8", "int4", "fp8"]
Granularity = Literal["tensor", "channel", "token", "group"]

DTYPES = ("int8", "int4", "fp8")
GRANULARITIES = ("tensor", "channel", "token", "group")
OPTIMIZERS = ("none", "smooth", "svd")
CALIBRATORS = ("amax", "gptq")
DEFAULT_RANK = 32
SEARCH = "search"


def _choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; {nearest(str(value), choices)}")


def _refuse_unknown(kind: type, values: Mapping[str, Any]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    for key in values:
        if key not in names:
            raise ValueError(f"{kind.__name__} has no field {key!r}; {nearest(key, names)}")


@dataclass(frozen=True)
class QuantSpec:
    """Format of one tensor.

    Args:
        dtype: "int8", "int4" (symmetric signed) or "fp8" (e4m3fn).
        granularity: what shares a scale: "tensor" (a segment where the layer is cut), "channel" (one weight
            row), "token" (one activation row) or "group" (`group_size` consecutive input channels of a row).
        group_size: input channels per group, only with granularity "group".
        dynamic: scales are taken from the tensor itself at run time (activations only).
    """

    dtype: Dtype
    granularity: Granularity = "tensor"
    group_size: int | None = None
    dynamic: bool = False

    def __post_init__(self) -> None:
        _choice("dtype", self.dtype, DTYPES)
        _choice("granularity", self.granularity, GRANULARITIES)
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError(
                f"granularity {self.granularity!r} with group_size={self.group_size}; "
                "give a group_size with granularity 'group' and with no other"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, not {self.group_size}")

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return 4 if self.dtype == "int4" else 8


@dataclass(frozen=True)
class QuantScheme:
    """Format of a layer's weight and of its input; None leaves that side in floating point."""

    weight: QuantSpec | None
    input: QuantSpec | None

    def __post_init__(self) -> None:
        weight, inputs = self.weight, self.input
        if weight is not None and (weight.dynamic or weight.granularity == "token"):
            raise ValueError(
                "a weight is quantized once: granularity 'token' and dynamic=True are for inputs"
            )
        if inputs is None:
            return
        if weight is None:
            raise ValueError("a quantized input needs a quantized weight; give weight a QuantSpec")
        if inputs.granularity == "channel":
            raise ValueError(
                "per-channel inputs cannot be taken out of the product; use tensor, token or group"
            )
        if inputs.granularity in ("token", "group") and not inputs.dynamic:
            raise ValueError(
                f"granularity {inputs.granularity!r} of an input is only known at run time; set dynamic=True"
            )

    @property
    def static_input(self) -> bool:
        """Whether the input's scales are fixed at calibration time."""
        return self.input is not None and not self.input.dynamic

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantScheme:
        """Inverse of `dataclasses.asdict`; unknown keys raise ValueError with the nearest name."""
        _refuse_unknown(cls, values)
        specs = {}
        for side in ("weight", "input"):
            spec = values.get(side)
            if spec is not None:
                _refuse_unknown(QuantSpec, spec)
                spec = QuantSpec(**spec)
            specs[side] = spec
        return cls(**specs)


_CHANNEL_INT8 = QuantSpec("int8", "channel")
_STATIC_INT8 = QuantSpec("int8", "tensor")
_TOKEN_INT8 = QuantSpec("int8", "token", dynamic=True)

PRECISIONS: dict[str, QuantScheme] = {
    "w8a8_tensor": QuantScheme(QuantSpec("int8", "tensor"), _STATIC_INT8),
    "w8a8": QuantScheme(_CHANNEL_INT8, _STATIC_INT8),
    "w8a8_dynamic": QuantScheme(_CHANNEL_INT8, _TOKEN_INT8),
    "fp8": QuantScheme(QuantSpec("fp8", "channel"), QuantSpec("fp8", "tensor")),
    "w4a8_channel": QuantScheme(QuantSpec("int4", "channel"), _TOKEN_INT8),
    "w4a8": QuantScheme(QuantSpec("int4", "group", 32), _TOKEN_INT8),
    "w4a4": QuantScheme(QuantSpec("int4", "group", 64), QuantSpec("int4", "group", 64, dynamic=True)),
    "w4a16": QuantScheme(QuantSpec("int4", "group", 64), None),
}


@dataclass(frozen=True)
class Method:
    """Everything that decides how a model is quantized; data and segments come from the outside.

    Args:
        name: for people and tables.
        scheme: number formats.
        seglinear: cut linears where the graph says so, each piece with its own parameters.
        dualscale: one scale per sign for inputs that come out of an activation function.
        optimizer: "none", "smooth" (SmoothQuant) or "svd" (smoothing, then a 16-bit low-rank branch).
        alpha: SmoothQuant's migration strength in [0, 1], or "search" (0.0, 0.1 … 1.0 and no smoothing).
        rank: rank of the low-rank branch (optimizer "svd"); None is SVDQuant's 32, but never more than a 32nd of
            the layer's smaller side, so that the branch stays a small share of a small layer's bytes too.
        iterations: rounds of refitting the low-rank branch to what the quantizer left (optimizer "svd").
        calibrator: "amax" (round to nearest) or "gptq".
        act_order: GPTQ goes through the columns by falling curvature.
        damp: GPTQ's damping, as a share of the mean of the Hessian's diagonal.
        skip: globs of module names that stay in floating point.
        on_uncalled: "error" or "skip" (leave in floating point) for linears that calibration never called.
        seed: of the reservoir of rows and of everything else that draws.
    """

    name: str
    scheme: QuantScheme
    seglinear: bool = False
    dualscale: bool = False
    optimizer: str = "none"
    alpha: float | str = SEARCH
    rank: int | None = None
    iterations: int = 0
    calibrator: str = "amax"
    act_order: bool = True
    damp: float = 0.01
    skip: tuple[str, ...] = ()
    on_uncalled: str = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        _choice("optimizer", self.optimizer, OPTIMIZERS)
        _choice("calibrator", self.calibrator, CALIBRATORS)
        _choice("on_uncalled", self.on_uncalled, ("error", "skip"))
        if isinstance(self.alpha, str):
            _choice("alpha", self.alpha, (SEARCH,))
        elif not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1] or be 'search', not {self.alpha}")
        if (self.rank is not None and self.rank < 1) or self.iterations < 0:
            raise ValueError(f"rank={self.rank}, iterations={self.iterations}: rank is at least 1, iterations 0")
        if not self.damp > 0:
            raise ValueError(f"damp must be positive, not {self.damp}")
        if isinstance(self.skip, str):
            raise ValueError(f"skip is a list of globs, not the string {self.skip!r}")
        object.__setattr__(self, "skip", tuple(str(pattern) for pattern in self.skip))

    def rank_of(self, in_features: int, out_features: int) -> int:
        """Rank of the low-rank branch of a layer of that size."""
        if self.rank is not None:
            return self.rank
        return max(1, min(DEFAULT_RANK, min(in_features, out_features) // DEFAULT_RANK))

    @property
    def needs_gram(self) -> bool:
        """Whether observe must accumulate XᵀX."""
        refits = self.optimizer == "svd" and self.iterations > 0
        return self.scheme.weight is not None and (self.calibrator == "gptq" or refits)

    @property
    def needs_data(self) -> bool:
        """Whether anything of the method depends on calibration inputs."""
        if self.scheme.weight is None:
            return False
        return self.scheme.static_input or self.optimizer != "none" or self.calibrator != "amax"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; `from_dict` is its inverse."""
        values = dataclasses.asdict(self)
        values["skip"] = list(self.skip)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Method:
        """Inverse of `to_dict`; unknown keys raise ValueError with the nearest name."""
        _refuse_unknown(cls, values)
        scheme = QuantScheme.from_dict(values["scheme"])
        return cls(**{**values, "scheme": scheme})
