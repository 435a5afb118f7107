"""SegQuant (2507.14811) as published, and with what was added since."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from segquant.checks import checked, require
from segquant.method.parts import Budget
from segquant.method.plan_file import read_plan
from segquant.method.spec import Method
from segquant.numerics.precisions import Precision, precision_name, scheme_of
from segquant.optimizers.search import SEARCH
from segquant.presets.settings import Branched, BranchedGptq, WithGram, made, part
from segquant.presets.smoothed import PAPERS_SEARCH

PAPERS_RANK: dict[str, Any] = {"rank": None, "rank_limit": 64, "rank_fraction": 0.0416667}
"""64 where the layer is as wide as the narrowest of the paper's (1536), a 24th of its smaller side below."""
GRAPH: dict[str, Any] = {"seglinear": True, "dualscale": True}


def segquant_a(precision: Precision = "w8a8_tensor", **settings: Unpack[Branched]) -> Method:
    """SegQuant-A as published: the graph's segments, DualScale, SmoothQuant with α per segment; rounded.

    α of 0.0, 0.1 … 1.0 by the output error on calibration data. At weights of 4 bits and less SVDQuant: a branch of
    rank 64 (a 24th of the smaller side of layers narrower than 1536), not refitted. `segquant_plus` has what was added.
    """
    own = {**GRAPH, **PAPERS_SEARCH, **PAPERS_RANK, "optimizer": _optimizer(precision)}
    return made("segquant_a", precision, Branched, settings, **own)


def segquant_g(precision: Precision = "w8a8_tensor", **settings: Unpack[BranchedGptq]) -> Method:
    """SegQuant-G as published: SegQuant-A with GPTQ in place of rounding.

    GPTQ is that of the preset `gptq` (`act_order`, a shrunk Gram matrix), so that the two differ in nothing else; the
    authors' own code leaves out a factor of it.
    """
    own = {**GRAPH, **PAPERS_SEARCH, **PAPERS_RANK, "optimizer": _optimizer(precision), "calibrator": "gptq"}
    return made("segquant_g", precision, BranchedGptq, settings, **own)


def segquant_plus(precision: Precision = "w8a8_tensor", **settings: Unpack[BranchedGptq]) -> Method:
    """SegQuant-G and what helps it, each a setting by itself (`experiment=ablation` adds one after the other).

    - `alpha_rows="held_out"`: α is judged on rows that did not set the ranges.
    - `alpha_none=True`: a segment may stay unsmoothed.
    - `headroom="search"`: static scales are wider where rows held out say that fresh ones would be clipped.
    - `iterations=1`: the low-rank branch is refitted once to what GPTQ left.
    - `ranges="mse"` without static inputs: ranges of least squared error (static ones would clip fresh rows).

    The rank is at most 32, and a 32nd of the layer's smaller side: beside GPTQ and the refit more costs bytes only.
    """
    given: dict[str, Any] = {**settings}
    if given.get("ranges") is None:
        given["ranges"] = "amax" if scheme_of(precision).static_input else "mse"
    return made("segquant_plus", precision, BranchedGptq, given, **_strong(precision))


def segquant_r(precision: Precision = "w8a8_tensor", **settings: Unpack[BranchedGptq]) -> Method:
    """`segquant_plus` with a rotation (which leaves nothing for DualScale), and ranges of least squared error."""
    return made("segquant_r", precision, BranchedGptq, settings, **_strong(precision), rotate=True, ranges="mse")


def _strong(precision: Precision) -> dict[str, Any]:
    searched: dict[str, Any] = {"alpha": SEARCH, "headroom": SEARCH, "iterations": 1, "calibrator": "gptq"}
    return {**GRAPH, **searched, "optimizer": _optimizer(precision)}


def auto(precision: Precision = "w8a8_tensor", **settings: Unpack[WithGram]) -> Method:
    """Every layer by itself: the candidate with the least output error on held-out rows, within a budget.

    `rotate`, `ranges` and `bias_correction` are chosen unless an override pins them (`overrides={"*": {"rotate":
    True}}`), `seglinear` and `dualscale` only where they are on.
    """
    given = {**settings, "budget": part(Budget, settings.get("budget"))}
    return made("auto", precision, WithGram, given, **GRAPH, headroom=SEARCH)


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
