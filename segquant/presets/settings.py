"""What presets take, and why one of them does not take a setting that others have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from segquant.calibrators.reconstruction import Reconstruction
from segquant.checks import require
from segquant.errors import nearest
from segquant.method.parts import Budget
from segquant.method.spec import Method
from segquant.numerics.formats import QuantScheme
from segquant.numerics.precisions import Precision, precision_name, scheme_of
from segquant.registry import build


class Common(TypedDict, total=False):
    """What every preset takes: flat settings, see `method.flat`."""

    seglinear: bool
    dualscale: bool
    rotate: bool | str
    rotation_group: int
    ranges: str | None
    percentile: float
    clip_norm: float
    bias_correction: bool
    headroom: float | str
    cuts: str
    deploy: str
    negative: str | None
    columns: str | None
    smoothing: str | None
    skip: Iterable[str]
    overrides: Mapping[str, Mapping[str, Any]] | Iterable[Sequence[Any]]
    on_uncalled: str
    convolutions: bool
    budget: Budget | Mapping[str, Any] | None
    seed: int


class Smoothed(Common, total=False):
    """And of those that smooth by an α, see `SmoothQuant`."""

    alpha: float | str | Sequence[Sequence[float | None]]
    alpha_rows: str
    alpha_none: bool


class WithGram(Common, total=False):
    """And of those that see XᵀX, see `Method`."""

    gram_shrinkage: float


class Branched(Smoothed, WithGram, total=False):
    """And of those with a low-rank branch, see `SvdQuant`."""

    rank: int | None
    svd: str
    iterations: int
    rank_limit: int
    rank_fraction: float


class WithGptq(WithGram, total=False):
    """And of those that round by GPTQ, see `Gptq`."""

    act_order: bool
    damp: float


class SmoothedGptq(Smoothed, WithGptq, total=False):
    """And of those that smooth and round by GPTQ."""


class BranchedGptq(Branched, WithGptq, total=False):
    """And of those that have all of it."""


class Turned(WithGptq, total=False):
    """And of those that rotate, and round by a calibrator of choice."""

    calibrator: str


class TurnedSmoothed(Smoothed, total=False):
    """And of those that rotate a smoothed input."""


class Learned(Common, total=False):
    """And of those that learn the rounding."""

    reconstruction: Reconstruction | Mapping[str, Any] | None


_SMOOTHS = "it does not smooth its inputs by an α; smoothquant, smoothquant_gptq, svdquant_gptq and segquant_plus do"
_BRANCHES = "it has no low-rank branch; svdquant, svdquant_gptq and segquant_plus have one"
_ROUNDS = "it does not round by GPTQ; gptq, gptq_mse, smoothquant_gptq, quarot_mse and svdquant_gptq do"
REASONS: dict[str, str] = {
    **dict.fromkeys(("alpha", "alpha_rows", "alpha_none"), _SMOOTHS),
    **dict.fromkeys(("rank", "rank_limit", "rank_fraction", "svd", "iterations"), _BRANCHES),
    **dict.fromkeys(("act_order", "damp"), _ROUNDS),
    "gram_shrinkage": "it does not look at the Gram matrix of its inputs; methods with GPTQ or a refitted branch do",
    "calibrator": "its way to round is part of its name; quarot, quarot_mse and convrot let it be chosen",
    "reconstruction": "it learns no rounding; q_diffusion does",
}
"""By a setting that some presets take, why another does not."""


def why_not(name: str, key: str, known: Iterable[str]) -> str:
    """Why the preset `name` takes no `key`, as the rest of a sentence."""
    return f"{name} takes no {key!r}" + (f": {REASONS[key]}" if key in REASONS else f"; {nearest(key, known)}")


def made(name: str, precision: Precision, takes: type, given: Mapping[str, Any], **defaults: Any) -> Method:
    """The method of a preset.

    Args:
        takes: the TypedDict of its keywords.
        given: as the caller gave them.
        defaults: where they are not given.

    Raises:
        TypeError: a keyword that the preset does not take, with the reason or the nearest.
        ValueError: a value that its part refuses.
    """
    for key in given:
        if key not in takes.__annotations__:
            raise TypeError(why_not(name, key, ["precision", *takes.__annotations__]))
    merged = {"scheme": scheme_of(precision), **defaults, **given}
    if merged.get("budget") is not None:
        merged["budget"] = part(Budget, merged["budget"])
    for key in ("skip", "overrides"):
        if merged.get(key) is None:
            merged[key] = ()
    return Method.of(name, merged.pop("scheme"), **merged)


def part(kind: type, value: Any) -> Any:
    """A part from None, a mapping of its fields, or itself."""
    if value is None or isinstance(value, Mapping):
        return build(kind, value or {})
    require(value, kind, "a method", kind.__name__.lower(), f"a {kind.__name__} or a mapping of its fields")
    return value


def needs_quantized_input(name: str, precision: Precision) -> None:
    """ValueError where activations stay in floating point."""
    if scheme_of(precision).input is None:
        told = precision_name(precision)
        raise ValueError(
            f"{name} at {told}: it moves difficulty from activations to weights, and {told} "
            "does not quantize activations; use rtn, gptq, awq, svdquant or segquant_g"
        )


def unquantized() -> QuantScheme:
    return QuantScheme(None, None)
