"""Settings of block reconstruction (AdaRound, BRECQ)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Reconstruction:
    """Settings of the rounding's optimisation.

    Args:
        rows: calibration items (rows of the model's batches) kept for the second pass, drawn uniformly.
        steps: Adam steps per block.
        batch: items per step; whole calls of the block are drawn until there are as many.
        lr: Adam's learning rate for V. Few steps want a large one: V has to travel about ±2.4 to saturate.
        strength: λ, relative to a reconstruction error that is 1 for rounding to nearest. In hundreds of steps
            instead of AdaRound's ten thousands it must be large, or most weights are still undecided at the end.
        warmup: share of the steps over which the rate rises from 0. The error starts at almost 0 (h gives the float
            weight), so Adam's first full steps would only follow noise.
        beta_start, beta_end: annealing of β over the steps (cosine, as in AdaRound; from 20 at first there, which
            leaves weights near the middle of their cell without any slope for most of a short run).
        held_out: share of the kept calls that judge the result instead of fitting it: a block for which they
            show no gain keeps its rounding to nearest.
        quantized_inputs: blocks are fitted on the inputs that the quantized blocks before them produce (as
            BRECQ and Q-Diffusion do), against the float model's outputs; else on the float model's inputs.
        memory_limit: bytes of block inputs and outputs held at a time; blocks that do not fit together are
            captured by further runs over the kept items.
    """

    rows: int = 256
    steps: int = 200
    batch: int = 16
    lr: float = 0.06
    strength: float = 100.0
    warmup: float = 0.1
    beta_start: float = 4.0
    beta_end: float = 2.0
    held_out: float = 0.25
    quantized_inputs: bool = True
    memory_limit: int = 2**31

    def __post_init__(self) -> None:
        for name in ("rows", "steps", "batch", "memory_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"reconstruction {name}={getattr(self, name)} must be at least 1")
        for name in ("lr", "beta_end"):
            if not getattr(self, name) > 0:
                raise ValueError(f"reconstruction {name}={getattr(self, name)} must be positive")
        if self.beta_start < self.beta_end or self.strength < 0:
            raise ValueError(
                f"reconstruction beta_start={self.beta_start}, beta_end={self.beta_end}, strength={self.strength}: "
                "beta falls from start to end, and strength is at least 0"
            )
        if not (0 <= self.warmup < 1 and 0 <= self.held_out < 1):
            raise ValueError(
                f"reconstruction warmup={self.warmup}, held_out={self.held_out}: both are shares in [0, 1)"
            )

    def beta(self, step: int) -> float:
        """β of one step, counted from 0."""
        done = math.pi * step / max(self.steps - 1, 1)
        return self.beta_end + 0.5 * (self.beta_start - self.beta_end) * (1 + math.cos(done))

    def rate(self, step: int) -> float:
        """Learning rate of one step, counted from 0."""
        return self.lr * min(1.0, (step + 1) / max(self.warmup * self.steps, 1.0))
