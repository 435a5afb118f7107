"""How a weight is rounded; bias correction. AdaRound is in `segquant.reconstruct`."""

from __future__ import annotations

from segquant.calibrators.gptq import Gptq
from segquant.calibrators.nearest import Nearest
from segquant.calibrators.protocol import Calibrator, Inputs

__all__ = ["Calibrator", "Gptq", "Inputs", "Nearest"]
