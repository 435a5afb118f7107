"""What is done to a layer before its weight is rounded."""

from __future__ import annotations

from segquant.optimizers.hadamard import Hadamard, Regular
from segquant.optimizers.protocol import Branch, Fitted, Optimizer, Problem, Rotation, Rounded
from segquant.optimizers.scaling import Awq, Balance, NoOptimizer, SmoothQuant
from segquant.optimizers.svdquant import SvdQuant

__all__ = [
    "Awq",
    "Balance",
    "Branch",
    "Fitted",
    "Hadamard",
    "NoOptimizer",
    "Optimizer",
    "Problem",
    "Regular",
    "Rotation",
    "Rounded",
    "SmoothQuant",
    "SvdQuant",
]
