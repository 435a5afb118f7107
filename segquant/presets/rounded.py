"""Weights and inputs as they come: rounding alone."""

from __future__ import annotations

from typing import Unpack

from segquant.calibrators.reconstruction import Reconstruction
from segquant.method.parts import FORMATS, Budget
from segquant.method.spec import Method
from segquant.numerics.precisions import Precision, precision_name, scheme_of
from segquant.presets.settings import Common, Learned, WithGptq, made, part, unquantized

MIXED = Budget(bytes=1.0, over=FORMATS)


def none(precision: Precision = "w8a8_tensor", **settings: Unpack[Common]) -> Method:
    """The model as it is; other arguments are checked and ignored."""
    scheme_of(precision)
    return made("none", precision, Common, {**settings, "overrides": ()}, scheme=unquantized())


def rtn(precision: Precision = "w8a8_tensor", **settings: Unpack[Common]) -> Method:
    """Round to nearest on absolute-maximum scales."""
    return made("rtn", precision, Common, settings)


def percentile(precision: Precision = "w8a8_tensor", **settings: Unpack[Common]) -> Method:
    """Round to nearest; static inputs scaled by the 99.99th percentile (of those in Wu et al., 2004.09602).

    Raises:
        ValueError: the precision has no static inputs.
    """
    if not scheme_of(precision).static_input:
        told = precision_name(precision)
        raise ValueError(
            f"percentile at {told}: it picks the range of static inputs, and {told} has none; use mse or rtn"
        )
    return made("percentile", precision, Common, settings, ranges="percentile")


def mse(precision: Precision = "w8a8_tensor", **settings: Unpack[Common]) -> Method:
    """Round to nearest; ranges of least squared error."""
    return made("mse", precision, Common, settings, ranges="mse")


def gptq(precision: Precision = "w8a8_tensor", **settings: Unpack[WithGptq]) -> Method:
    """GPTQ (2210.17323) on unsmoothed weights.

    Beyond the paper: columns of large inputs first (`act_order`, which its code has), and the Gram matrix of few rows
    is shrunk towards its diagonal; `gram_shrinkage=0` is the paper's.
    """
    return made("gptq", precision, WithGptq, settings, calibrator="gptq")


def gptq_mse(precision: Precision = "w8a8_tensor", **settings: Unpack[WithGptq]) -> Method:
    """GPTQ on ranges of least squared error.

    Its own code has such a search too (`mse`), by Σ |w − ŵ|^2.4 with all inputs alike: `ranges="clip"` here. This one
    weighs by the inputs' mean squares, and does the same for static inputs.
    """
    return made("gptq_mse", precision, WithGptq, settings, calibrator="gptq", ranges="mse")


def gptq_mixed(precision: Precision = "w4a8", **settings: Unpack[WithGptq]) -> Method:
    """`gptq_mse` with a format for every layer: widths of 2 to 8 bits and groups of the precision's kind.

    The layers' errors on held-out rows, weighed by how much of them reaches the output, decide at the bytes that plain
    rounding has at the precision. Every preset does so with `budget={"over": "formats", "bytes": 1}`; see `Budget`.
    """
    return made("gptq_mixed", precision, WithGptq, settings, calibrator="gptq", ranges="mse", budget=MIXED)


def q_diffusion(precision: Precision = "w8a8_tensor", **settings: Unpack[Learned]) -> Method:
    """Q-Diffusion (2302.04304): a UNet's skip concats in two pieces, AdaRound by block reconstruction.

    As in the paper, inputs of convolutions that are concats are cut, and nothing else; other models have none.
    Otherwise than there: the ranges of inputs are the maximum (there learnt with the blocks), blocks learn fewer steps
    at a larger rate (see `Reconstruction`), and calibration inputs come from all timesteps alike.
    """
    reconstruction = part(Reconstruction, settings.get("reconstruction"))
    given = {**settings, "reconstruction": reconstruction}
    return made("q_diffusion", precision, Learned, given, calibrator="adaround", seglinear=True, cuts="skips")
