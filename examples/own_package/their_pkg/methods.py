"""A method: what `quantizer._target_` names. Its arguments are what the configuration may set."""

from typing import Unpack

from segquant import Method
from segquant.presets import Common
from their_pkg import calibrator, optimizer  # noqa: F401 - their names are registered


def theirs(precision: str = "w8a8", *, share: float = 0.25, **common: Unpack[Common]) -> Method:
    """Smoothing by the root of ranges, rounding towards zero; `common` is what every method takes."""
    return Method.of("theirs", precision, optimizer="root", calibrator="toward_zero", share=share, **common)
