"""One plain function per named method; each returns a frozen `Method`.

All take `precision` (a name in PRECISIONS), the toggles `seglinear` and `dualscale`, and `skip`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from segquant.errors import nearest
from segquant.spec import PRECISIONS, SEARCH, Method, QuantScheme


def scheme_of(precision: str) -> QuantScheme:
    """The scheme of a named precision; ValueError with the nearest names if there is none."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; {nearest(precision, PRECISIONS)}")
    return PRECISIONS[precision]


def _method(name: str, precision: str, skip: Iterable[str], **values: Any) -> Method:
    scheme = values.pop("scheme", None) or scheme_of(precision)
    return Method(name=name, scheme=scheme, skip=tuple(skip), **values)


def none(
    precision: str = "w8a8_tensor",
    *,
    seglinear: bool = False,
    dualscale: bool = False,
    skip: Iterable[str] = (),
) -> Method:
    """The model as it is; the other arguments are accepted (and checked) so that sweeps can pass them."""
    scheme_of(precision)
    return _method(
        "none", precision, skip, scheme=QuantScheme(None, None), seglinear=seglinear, dualscale=dualscale
    )


def rtn(
    precision: str = "w8a8_tensor",
    *,
    seglinear: bool = False,
    dualscale: bool = False,
    skip: Iterable[str] = (),
    on_uncalled: str = "error",
    seed: int = 0,
) -> Method:
    """Round to nearest on absolute-maximum scales."""
    return _method(
        "rtn", precision, skip, seglinear=seglinear, dualscale=dualscale, on_uncalled=on_uncalled, seed=seed
    )


def smoothquant(
    precision: str = "w8a8_tensor",
    *,
    alpha: float | str = 0.5,
    seglinear: bool = False,
    dualscale: bool = False,
    skip: Iterable[str] = (),
    on_uncalled: str = "error",
    seed: int = 0,
) -> Method:
    """SmoothQuant (2211.10438); alpha="search" is "Smooth+", one α per layer.

    Raises:
        ValueError: the precision leaves activations in floating point: there is nothing to smooth.
    """
    if scheme_of(precision).input is None:
        raise ValueError(
            f"smoothquant at {precision}: it moves difficulty from activations to weights, and {precision} "
            "does not quantize activations; use rtn, gptq, svdquant or segquant_g"
        )
    return _method(
        "smoothquant",
        precision,
        skip,
        optimizer="smooth",
        alpha=alpha,
        seglinear=seglinear,
        dualscale=dualscale,
        on_uncalled=on_uncalled,
        seed=seed,
    )


def gptq(
    precision: str = "w8a8_tensor",
    *,
    seglinear: bool = False,
    dualscale: bool = False,
    act_order: bool = True,
    damp: float = 0.01,
    skip: Iterable[str] = (),
    on_uncalled: str = "error",
    seed: int = 0,
) -> Method:
    """GPTQ (2210.17323) on unsmoothed weights."""
    return _method(
        "gptq",
        precision,
        skip,
        calibrator="gptq",
        seglinear=seglinear,
        dualscale=dualscale,
        act_order=act_order,
        damp=damp,
        on_uncalled=on_uncalled,
        seed=seed,
    )


def svdquant(
    precision: str = "w4a8",
    *,
    alpha: float | str = SEARCH,
    rank: int | None = None,
    iterations: int = 0,
    seglinear: bool = False,
    dualscale: bool = False,
    skip: Iterable[str] = (),
    on_uncalled: str = "error",
    seed: int = 0,
) -> Method:
    """SVDQuant (2411.05007): smoothing (α per layer), a 16-bit branch (rank: `Method.rank`), the rest rounded."""
    return _method(
        "svdquant",
        precision,
        skip,
        optimizer="svd",
        alpha=alpha,
        rank=rank,
        iterations=iterations,
        seglinear=seglinear,
        dualscale=dualscale,
        on_uncalled=on_uncalled,
        seed=seed,
    )


def segquant_a(
    precision: str = "w8a8_tensor",
    *,
    seglinear: bool = True,
    dualscale: bool = True,
    alpha: float | str = SEARCH,
    rank: int | None = None,
    skip: Iterable[str] = (),
    on_uncalled: str = "error",
    seed: int = 0,
) -> Method:
    """SegQuant-A (2507.14811): SmoothQuant with α searched per segment, AMax; at 4-bit weights SVDQuant."""
    return _method(
        "segquant_a",
        precision,
        skip,
        optimizer=_optimizer(precision),
        alpha=alpha,
        rank=rank,
        seglinear=seglinear,
        dualscale=dualscale,
        on_uncalled=on_uncalled,
        seed=seed,
    )


def segquant_g(
    precision: str = "w8a8_tensor",
    *,
    seglinear: bool = True,
    dualscale: bool = True,
    alpha: float | str = SEARCH,
    rank: int | None = None,
    iterations: int = 1,
    act_order: bool = True,
    damp: float = 0.01,
    skip: Iterable[str] = (),
    on_uncalled: str = "error",
    seed: int = 0,
) -> Method:
    """SegQuant-G (2507.14811): SegQuant-A with GPTQ in place of rounding."""
    return _method(
        "segquant_g",
        precision,
        skip,
        optimizer=_optimizer(precision),
        alpha=alpha,
        rank=rank,
        iterations=iterations,
        calibrator="gptq",
        act_order=act_order,
        damp=damp,
        seglinear=seglinear,
        dualscale=dualscale,
        on_uncalled=on_uncalled,
        seed=seed,
    )


def _optimizer(precision: str) -> str:
    weight = scheme_of(precision).weight
    return "svd" if weight is not None and weight.bits == 4 else "smooth"
