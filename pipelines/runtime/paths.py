"""Where the benchmark's own files are: in a clone the repository's folders, in a wheel those of `segquant_bench`."""

from __future__ import annotations

from pathlib import Path

PIPELINES = Path(__file__).resolve().parents[1]
HOME = PIPELINES.parent
CONF = HOME / "conf"
ZOO = PIPELINES / "zoo"
FAMILIES = {"sd3": "emoji_sd3", "flux": "emoji_flux", "sdxl": "emoji_sdxl", "canny": "emoji_sd3_canny"}
"""Folder of each family's pipeline."""
