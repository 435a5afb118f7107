"""The benchmark's own files: in a clone, or in a wheel's `segquant_bench`.

pipelines/zoo is in clones only; SEGQUANT_ZOO=CLONE/pipelines/zoo gives it to a wheel.
"""

from __future__ import annotations

import os
from pathlib import Path

PIPELINES = Path(__file__).resolve().parents[1]
HOME = PIPELINES.parent
CONF = HOME / "conf"
ZOO = PIPELINES / "zoo"
ZOO_VARIABLE = "SEGQUANT_ZOO"
FAMILIES = {"sd3": "emoji_sd3", "flux": "emoji_flux", "sdxl": "emoji_sdxl", "canny": "emoji_sd3_canny"}
"""Folder of each family's pipeline."""
ZOO_ADVICE = f"clone SegQuant's repository and set {ZOO_VARIABLE}=CLONE/pipelines/zoo"


def zoo_variable() -> Path | None:
    named = os.environ.get(ZOO_VARIABLE)
    return Path(named).absolute() if named else None


def is_shipped(path: str | None) -> bool:
    """Whether a path leads to a file of pipelines/zoo."""
    homes = [home for home in (ZOO, zoo_variable()) if home is not None]
    return path is not None and any(Path(path).resolve().is_relative_to(home.resolve()) for home in homes)


def zoo_path(name: str) -> Path:
    """A shipped file: of SEGQUANT_ZOO, else of the clone, there or not."""
    named = zoo_variable()
    return named / name if named is not None and (named / name).exists() else ZOO / name
