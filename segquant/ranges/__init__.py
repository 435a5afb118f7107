"""Ranges for scales: the maximum, a percentile, the least squared error, a clipping search."""

from __future__ import annotations

from segquant.ranges.amax import Amax
from segquant.ranges.clip import Clip
from segquant.ranges.mse import Mse
from segquant.ranges.percentile import Percentile
from segquant.ranges.protocol import Range

__all__ = ["Amax", "Clip", "Mse", "Percentile", "Range"]
