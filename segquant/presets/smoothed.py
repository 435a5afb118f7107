"""Difficulty moved from inputs to weights by a vector per layer."""

from __future__ import annotations

from typing import Any, Unpack

from segquant.method.spec import Method
from segquant.numerics.precisions import Precision
from segquant.optimizers.search import SEARCH, SEEN
from segquant.presets.settings import (
    Branched,
    BranchedGptq,
    Common,
    Smoothed,
    SmoothedGptq,
    made,
    needs_quantized_input,
)

PAPERS_SEARCH: dict[str, Any] = {"alpha": SEARCH, "alpha_rows": SEEN, "alpha_none": False}
"""α of 0.0, 0.1 … 1.0 by the output error on calibration data."""


def smoothquant(precision: Precision = "w8a8_tensor", **settings: Unpack[Smoothed]) -> Method:
    """SmoothQuant (2211.10438) at a fixed α, 0.5.

    Raises:
        ValueError: the precision leaves activations in floating point.
    """
    needs_quantized_input("smoothquant", precision)
    return made("smoothquant", precision, Smoothed, settings, optimizer="smooth", alpha=0.5)


def smoothquant_plus(precision: Precision = "w8a8_tensor", **settings: Unpack[Smoothed]) -> Method:
    """SegQuant's "Smooth+" (2507.14811): SmoothQuant, α of 0.0 … 1.0 by every layer's output error."""
    needs_quantized_input("smoothquant_plus", precision)
    return made("smoothquant_plus", precision, Smoothed, settings, optimizer="smooth", **PAPERS_SEARCH)


def smoothquant_gptq(precision: Precision = "w8a8_tensor", **settings: Unpack[SmoothedGptq]) -> Method:
    """SmoothQuant as strong as it gets: α by rows held out, none among the choices, headroom; then GPTQ.

    No paper's method: what SegQuant-G is without the graph, so that a gain of the graph shows as such.
    """
    needs_quantized_input("smoothquant_gptq", precision)
    strong: dict[str, Any] = {"alpha": SEARCH, "headroom": SEARCH, "calibrator": "gptq"}
    return made("smoothquant_gptq", precision, SmoothedGptq, settings, optimizer="smooth", **strong)


def awq(precision: Precision = "w4a16", **settings: Unpack[Smoothed]) -> Method:
    """AWQ (2306.00978): scales mean|X_j|^α by the rounded weight's error; clipped weight ranges.

    Otherwise than there: α is judged on rows held out, of the 11 tenths and not 20 steps, and clipping is that of
    `ranges=mse`, weighted by the inputs' mean squares, and not by outputs of a few tokens.
    """
    return made("awq", precision, Smoothed, settings, optimizer="awq", alpha=SEARCH, ranges="mse")


def ptq4dit(precision: Precision = "w8a8_tensor", **settings: Unpack[Common]) -> Method:
    """PTQ4DiT (2405.16005): channel salience balanced, timesteps weighted by Spearman's ρ.

    Otherwise than there: no block is reconstructed, and layers divide their inputs by themselves.
    """
    needs_quantized_input("ptq4dit", precision)
    return made("ptq4dit", precision, Common, settings, optimizer="balance")


def svdquant(precision: Precision = "w4a8", **settings: Unpack[Branched]) -> Method:
    """SVDQuant (2411.05007): smoothing (α per layer), a 16-bit branch of rank 32, the rest rounded.

    Layers narrower than 1024 have less: a 32nd of their smaller side. Otherwise than there: α alone is searched (there
    also the weight's exponent, which is 1 − α here), and groups are the precision's.
    """
    return made("svdquant", precision, Branched, settings, optimizer="svd", iterations=0, **PAPERS_SEARCH)


def svdquant_gptq(precision: Precision = "w4a8", **settings: Unpack[BranchedGptq]) -> Method:
    """SVDQuant as strong as it gets: GPTQ rounds the rest, and the branch is refitted once to what GPTQ left.

    α by rows held out, none among the choices, headroom. SVDQuant's own code can round by GPTQ; the refit, by least
    squares in the outputs, is ours (one, since further ones gain little).
    """
    strong: dict[str, Any] = {"alpha": SEARCH, "headroom": SEARCH, "calibrator": "gptq", "iterations": 1}
    return made("svdquant_gptq", precision, BranchedGptq, settings, optimizer="svd", **strong)
