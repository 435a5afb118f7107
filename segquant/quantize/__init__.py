"""quantize_: a float model becomes a quantized one, in place."""

from __future__ import annotations

from segquant.quantize.outcome import Outcome
from segquant.quantize.run import quantize_, quantize_with_outcome_

__all__ = ["Outcome", "quantize_", "quantize_with_outcome_"]
