"""Inputs and weights rotated."""

from __future__ import annotations

from typing import Unpack

from segquant.method.spec import Method
from segquant.numerics.precisions import Precision
from segquant.optimizers.search import SEARCH
from segquant.presets.settings import Turned, TurnedSmoothed, made, needs_quantized_input


def quarot(precision: Precision = "w4a4", **settings: Unpack[Turned]) -> Method:
    """QuaRot (2404.00456) per layer: randomized Hadamard rotation, then GPTQ.

    Otherwise than there: every layer rotates its own input (nothing is folded into other layers, and caches are not
    quantized), widths that are no power of two in blocks, and inputs are not clipped at 0.9 of their maximum. Static
    inputs, which it does not have, get headroom: only a sample tells the range of what is rotated.
    """
    return made("quarot", precision, Turned, settings, rotate=True, calibrator="gptq", headroom=SEARCH)


def quarot_mse(precision: Precision = "w4a4", **settings: Unpack[Turned]) -> Method:
    """`quarot` with QuaRot's own search for clipped weight ranges: shares 1.00 … 0.21, by Σ |w − ŵ|^2.4.

    Static inputs, for which it has no rule, get ranges of least squared error and headroom.
    """
    return made(
        "quarot_mse", precision, Turned, settings, rotate=True, calibrator="gptq", ranges="clip", headroom=SEARCH
    )


def vidit_q(precision: Precision = "w8a8_dynamic", **settings: Unpack[TurnedSmoothed]) -> Method:
    """ViDiT-Q's static-dynamic channel balance (2406.02540): smoothing at a fixed α, then a randomized rotation.

    The paper's precisions are w8a8_dynamic and w4a8_channel. Its own code has 1 − α in place of α, chooses layers by
    their names (here: all) and may have zero points. Not included: bits by its metric-decoupled sensitivities; `auto`
    chooses them by errors.

    Raises:
        ValueError: the precision leaves activations in floating point.
    """
    needs_quantized_input("vidit_q", precision)
    return made(
        "vidit_q", precision, TurnedSmoothed, settings, optimizer="smooth", alpha=0.5, rotate=True, headroom=SEARCH
    )


def convrot(precision: Precision = "w8a8_dynamic", **settings: Unpack[Turned]) -> Method:
    """ConvRot (2512.03673) as ComfyUI's int8 models have it: a regular Hadamard rotation in groups, then rounding.

    Groups of 256 channels, one matrix for all, the fourth Kronecker power of the regular H4, no random signs; weights
    rounded to nearest with a scale per output, inputs with one per token. Layers that 256 does not divide are rotated
    in the largest power of four that does. Otherwise than there: all layers are quantized (files of ComfyUI leave some
    out by their names). The paper itself is about w4a4, which this takes too.
    """
    return made("convrot", precision, Turned, settings, rotate="regular", calibrator="amax")
