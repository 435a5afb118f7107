"""One function per named method; each returns a frozen `Method`.

`precision` is a name in PRECISIONS, a QuantScheme, or the fields of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from segquant.calibrators.reconstruction import Reconstruction
from segquant.checks import checked, require
from segquant.errors import nearest
from segquant.method.parts import FORMATS, Budget
from segquant.method.plan_file import read_plan
from segquant.method.spec import Method
from segquant.numerics.formats import QuantScheme
from segquant.numerics.precisions import Precision, precision_name, scheme_of
from segquant.optimizers.search import SEARCH
from segquant.registry import build


class Common(TypedDict, total=False):
    """What every preset takes: flat settings, see `method.flat`."""

    seglinear: bool
    dualscale: bool
    rotate: bool | str
    ranges: str
    percentile: float
    bias_correction: bool
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


MIXED = Budget(bytes=1.0, over=FORMATS)


def _method(name: str, precision: Precision, common: Mapping[str, Any], **values: Any) -> Method:
    for key in common:
        if key not in Common.__annotations__:
            raise TypeError(f"{name} takes no {key!r}; {nearest(key, _keywords(name))}")
    merged = {"scheme": scheme_of(precision), **values, **common}
    if merged.get("budget") is not None:
        merged["budget"] = _part(Budget, merged["budget"])
    for key in ("skip", "overrides"):
        if merged.get(key) is None:
            merged[key] = ()
    return Method.of(name, merged.pop("scheme"), **merged)


def _keywords(name: str) -> list[str]:
    """What the preset takes: its own keywords and the common ones."""
    own = [key for key in inspect.signature(globals()[name]).parameters if key != "common"]
    return [*own, *Common.__annotations__]


def _part(kind: type, value: Any) -> Any:
    if value is None or isinstance(value, Mapping):
        return build(kind, value or {})
    require(value, kind, "a method", kind.__name__.lower(), f"a {kind.__name__} or a mapping of its fields")
    return value


def _needs_quantized_input(name: str, precision: Precision) -> None:
    if scheme_of(precision).input is None:
        told = precision_name(precision)
        raise ValueError(
            f"{name} at {told}: it moves difficulty from activations to weights, and {told} "
            "does not quantize activations; use rtn, gptq, awq, svdquant or segquant_g"
        )


def none(precision: Precision = "w8a8_tensor", **common: Unpack[Common]) -> Method:
    """The model as it is; other arguments are checked and ignored."""
    scheme_of(precision)
    return _method("none", precision, {**common, "overrides": ()}, scheme=QuantScheme(None, None))


def rtn(precision: Precision = "w8a8_tensor", **common: Unpack[Common]) -> Method:
    """Round to nearest on absolute-maximum scales."""
    return _method("rtn", precision, common)


def percentile(precision: Precision = "w8a8_tensor", **common: Unpack[Common]) -> Method:
    """Round to nearest; static inputs scaled by the 99.9th percentile.

    Raises:
        ValueError: the precision has no static inputs.
    """
    if not scheme_of(precision).static_input:
        told = precision_name(precision)
        raise ValueError(
            f"percentile at {told}: it picks the range of static inputs, and {told} has none; use mse or rtn"
        )
    return _method("percentile", precision, {"ranges": "percentile", **common})


def mse(precision: Precision = "w8a8_tensor", **common: Unpack[Common]) -> Method:
    """Round to nearest; ranges of least squared error."""
    return _method("mse", precision, {"ranges": "mse", **common})


def smoothquant(precision: Precision = "w8a8_tensor", *, alpha: float | str = 0.5, **common: Unpack[Common]) -> Method:
    """SmoothQuant (2211.10438) at a fixed α.

    Raises:
        ValueError: the precision leaves activations in floating point.
    """
    _needs_quantized_input("smoothquant", precision)
    return _method("smoothquant", precision, common, optimizer="smooth", alpha=alpha)


def smoothquant_plus(precision: Precision = "w8a8_tensor", **common: Unpack[Common]) -> Method:
    """The paper's "Smooth+": SmoothQuant with α searched for every layer."""
    _needs_quantized_input("smoothquant_plus", precision)
    return _method("smoothquant_plus", precision, common, optimizer="smooth", alpha=SEARCH)


def gptq(
    precision: Precision = "w8a8_tensor", *, act_order: bool = True, damp: float = 0.01, **common: Unpack[Common]
) -> Method:
    """GPTQ (2210.17323) on unsmoothed weights."""
    return _method("gptq", precision, common, calibrator="gptq", act_order=act_order, damp=damp)


def gptq_mse(
    precision: Precision = "w8a8_tensor", *, act_order: bool = True, damp: float = 0.01, **common: Unpack[Common]
) -> Method:
    """GPTQ on ranges of least squared error, as its own code has them with `mse` switched on."""
    return _method(
        "gptq_mse", precision, {"ranges": "mse", **common}, calibrator="gptq", act_order=act_order, damp=damp
    )


def gptq_mixed(
    precision: Precision = "w4a8",
    *,
    act_order: bool = True,
    damp: float = 0.01,
    budget: Budget | Mapping[str, Any] | None = MIXED,
    **common: Unpack[Common],
) -> Method:
    """`gptq_mse` with a format for every layer: widths of 2 to 8 bits and groups of the precision's kind.

    The layers' errors on held-out rows, weighed by how much of them reaches the output, decide at the bytes that plain
    rounding has at the precision. Every preset does so with `budget={"over": "formats", "bytes": 1}`; see `Budget`.
    """
    own = {"act_order": act_order, "damp": damp, "budget": _part(Budget, budget)}
    return _method("gptq_mixed", precision, {"ranges": "mse", **common}, calibrator="gptq", **own)


def awq(precision: Precision = "w4a16", *, alpha: float | str = SEARCH, **common: Unpack[Common]) -> Method:
    """AWQ (2306.00978): scales mean|X_j|^α by the rounded weight's error; clipped weight ranges."""
    return _method("awq", precision, {"ranges": "mse", **common}, optimizer="awq", alpha=alpha)


def quarot(precision: Precision = "w4a4", *, calibrator: str = "gptq", **common: Unpack[Common]) -> Method:
    """QuaRot (2404.00456) per layer: randomized Hadamard rotation, then GPTQ."""
    return _method("quarot", precision, {"rotate": True, **common}, calibrator=calibrator)


def vidit_q(precision: Precision = "w8a8_dynamic", *, alpha: float | str = 0.5, **common: Unpack[Common]) -> Method:
    """ViDiT-Q's static-dynamic channel balance (2406.02540): smoothing at a fixed α, then a randomized rotation.

    The paper's precisions are w8a8_dynamic and w4a8_channel. Its own code has 1 − α in place of α, chooses layers by
    their names (here: all) and may have zero points. Not included: bits by its metric-decoupled sensitivities; `auto`
    chooses them by errors.

    Raises:
        ValueError: the precision leaves activations in floating point.
    """
    _needs_quantized_input("vidit_q", precision)
    return _method("vidit_q", precision, {"rotate": True, **common}, optimizer="smooth", alpha=alpha)


def ptq4dit(precision: Precision = "w8a8_tensor", **common: Unpack[Common]) -> Method:
    """PTQ4DiT (2405.16005): channel salience balanced, timesteps weighted by Spearman's ρ."""
    _needs_quantized_input("ptq4dit", precision)
    return _method("ptq4dit", precision, common, optimizer="balance")


def q_diffusion(
    precision: Precision = "w8a8_tensor",
    *,
    reconstruction: Reconstruction | Mapping[str, Any] | None = None,
    **common: Unpack[Common],
) -> Method:
    """Q-Diffusion (2302.04304): concatenated inputs in two pieces, AdaRound by block reconstruction.

    Use `seglinear` only for models with concatenated inputs.
    """
    reconstruction = _part(Reconstruction, reconstruction)
    return _method("q_diffusion", precision, common, calibrator="adaround", reconstruction=reconstruction)


def svdquant(
    precision: Precision = "w4a8",
    *,
    alpha: float | str = SEARCH,
    rank: int | None = None,
    svd: str = "exact",
    iterations: int = 0,
    **common: Unpack[Common],
) -> Method:
    """SVDQuant (2411.05007): smoothing (α per layer), a 16-bit branch, the rest rounded."""
    return _method(
        "svdquant", precision, common, optimizer="svd", alpha=alpha, rank=rank, svd=svd, iterations=iterations
    )


def segquant_a(
    precision: Precision = "w8a8_tensor",
    *,
    alpha: float | str = SEARCH,
    rank: int | None = None,
    svd: str = "exact",
    **common: Unpack[Common],
) -> Method:
    """SegQuant-A (2507.14811): SmoothQuant with α per segment; at 4-bit weights SVDQuant."""
    cuts: dict[str, Any] = {"seglinear": True, "dualscale": True, **common}
    return _method("segquant_a", precision, cuts, optimizer=_optimizer(precision), alpha=alpha, rank=rank, svd=svd)


def segquant_g(
    precision: Precision = "w8a8_tensor",
    *,
    alpha: float | str = SEARCH,
    rank: int | None = None,
    svd: str = "exact",
    iterations: int = 1,
    act_order: bool = True,
    damp: float = 0.01,
    **common: Unpack[Common],
) -> Method:
    """SegQuant-G (2507.14811): SegQuant-A with GPTQ in place of rounding."""
    own = {"alpha": alpha, "rank": rank, "svd": svd, "iterations": iterations, "act_order": act_order, "damp": damp}
    return _with_gptq("segquant_g", precision, own, common)


def segquant_r(
    precision: Precision = "w8a8_tensor",
    *,
    alpha: float | str = SEARCH,
    rank: int | None = None,
    svd: str = "exact",
    iterations: int = 1,
    act_order: bool = True,
    damp: float = 0.01,
    **common: Unpack[Common],
) -> Method:
    """SegQuant-G with a rotation (which leaves nothing for DualScale), and ranges of least squared error."""
    own = {"alpha": alpha, "rank": rank, "svd": svd, "iterations": iterations, "act_order": act_order, "damp": damp}
    return _with_gptq("segquant_r", precision, own, {"rotate": True, "ranges": "mse", **common})


def _with_gptq(name: str, precision: Precision, own: Mapping[str, Any], common: Mapping[str, Any]) -> Method:
    fields = {"seglinear": True, "dualscale": True, **common}
    return _method(name, precision, fields, optimizer=_optimizer(precision), calibrator="gptq", **own)


def auto(
    precision: Precision = "w8a8_tensor",
    *,
    budget: Budget | Mapping[str, Any] | None = None,
    **common: Unpack[Common],
) -> Method:
    """Every layer by itself: the candidate with the least output error on held-out rows, within a budget.

    `rotate`, `ranges` and `bias_correction` are chosen unless an override pins them (`overrides={"*": {"rotate":
    True}}`), `seglinear` and `dualscale` only where they are on.
    """
    budget = _part(Budget, budget)
    return _method("auto", precision, {"seglinear": True, "dualscale": True, **common}, budget=budget)


@checked(precision="", path="")
def plan(precision: Precision | None = None, *, path: str | Path | None = None) -> Method:
    """The choices of an earlier `auto`, read from its (perhaps edited) plan.json.

    Raises:
        ValueError: no path, no such file, no plan, or another precision.
    """
    if path is None:
        raise ValueError("quantizer plan needs quantizer.path=FILE, the plan.json of a run of quantizer=auto")
    require(path, str | Path, "presets.plan", "path", "the path of a plan.json")
    method = read_plan(Path(path))
    if precision is not None and method.scheme != scheme_of(precision):
        told = precision_name(precision)
        raise ValueError(f"{path} is a plan for another precision than {told}; choose the one it was made for")
    return method


def _optimizer(precision: Precision) -> str:
    weight = scheme_of(precision).weight
    return "svd" if weight is not None and weight.bits <= 4 else "smooth"
