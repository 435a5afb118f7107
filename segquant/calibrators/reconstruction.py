"""Settings of block reconstruction (AdaRound, BRECQ)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from segquant.bounds import check_most
from segquant.checks import check_fields


@dataclass(frozen=True)
class Reconstruction:
    """Settings for learning the rounding.

    AdaRound's own are 10,000 steps at a rate of .001 with β from 20; a larger rate, risen to over a fifth of the steps,
    and a lower β get to the same roundings in 300 (a test on a small layer compares them).

    Args:
        rows: calibration items kept.
        steps: per block.
        batch: items per step, in whole calls.
        lr: for V.
        strength: λ, relative to an error that is 1 for rounding to nearest.
        warmup: share of the steps over which the rate rises from 0.
        beta_start: β at first; annealed by a cosine.
        beta_end: β at last.
        held_out: share of the calls that judge a block.
        quantized_inputs: fit blocks on quantized inputs.
        memory_limit: bytes of block inputs and outputs.
    """

    rows: int = 256
    steps: int = 300
    batch: int = 16
    lr: float = 0.04
    strength: float = 3.0
    warmup: float = 0.2
    beta_start: float = 8.0
    beta_end: float = 2.0
    held_out: float = 0.25
    quantized_inputs: bool = True
    memory_limit: int = 2**31

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("rows", "steps", "batch", "memory_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"reconstruction {name}={getattr(self, name)} must be at least 1")
        for name in ("lr", "beta_end"):
            if not getattr(self, name) > 0:
                raise ValueError(f"reconstruction {name}={getattr(self, name)} must be positive")
        if not (self.beta_start >= self.beta_end and self.strength >= 0):
            raise ValueError(
                f"reconstruction beta_start={self.beta_start}, beta_end={self.beta_end}, strength={self.strength}: "
                "beta falls from start to end, and strength is at least 0"
            )
        if not (0 <= self.warmup < 1 and 0 <= self.held_out < 1):
            raise ValueError(
                f"reconstruction warmup={self.warmup}, held_out={self.held_out}: both are shares in [0, 1)"
            )
        check_most(self, "reconstruction ")

    def beta(self, step: int) -> float:
        done = math.pi * step / max(self.steps - 1, 1)
        return self.beta_end + 0.5 * (self.beta_start - self.beta_end) * (1 + math.cos(done))

    def rate(self, step: int) -> float:
        return self.lr * min(1.0, (step + 1) / max(self.warmup * self.steps, 1.0))
