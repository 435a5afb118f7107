"""Where the benchmark's own files are: in a clone the repository's folders, in a wheel those of `segquant_bench`.

The shipped pipelines and data set (pipelines/zoo, 108 MB) are in the repository only: a wheel is half a megabyte
without them. An installed package finds them in a clone by the environment variable SEGQUANT_ZOO=CLONE/pipelines/zoo.
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
    """The folder that SEGQUANT_ZOO names, whether it is there or not; None if it is unset or empty."""
    named = os.environ.get(ZOO_VARIABLE)
    return Path(named).absolute() if named else None


def zoo_path(name: str) -> Path:
    """A shipped file: that of SEGQUANT_ZOO, else the clone's. If neither is there, where the clone would have it."""
    named = zoo_variable()
    return named / name if named is not None and (named / name).exists() else ZOO / name
