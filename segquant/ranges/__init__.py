"""Ranges for scales: the maximum, a percentile, the least squared error."""

from __future__ import annotations

from segquant.ranges.amax import Amax
from segquant.ranges.mse import Mse
from segquant.ranges.percentile import Percentile
from segquant.ranges.protocol import Range

__all__ = ["Amax", "Mse", "Percentile", "Range"]
