"""Round a weight onto its grid; move what is left into the bias. AdaRound's member is in `segquant.reconstruct`."""

from __future__ import annotations

from segquant.calibrators.gptq import Gptq
from segquant.calibrators.nearest import Nearest
from segquant.calibrators.protocol import Calibrator, Inputs

__all__ = ["Calibrator", "Gptq", "Inputs", "Nearest"]
