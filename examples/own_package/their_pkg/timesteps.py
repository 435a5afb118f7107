"""Calibration timesteps: a weight for every step of the schedule; step 0 is the noisiest."""

import numpy as np


def late(steps: int, power: float = 1.0) -> np.ndarray:
    """The nearer to the picture, the more often a step is seen."""
    return np.arange(1, steps + 1, dtype=np.float64) ** power
