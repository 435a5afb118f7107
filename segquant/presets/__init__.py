"""One function per named method; each returns a frozen `Method`.

`precision` is a name in PRECISIONS, a QuantScheme, or the fields of one. What else a function takes is in the
TypedDict of its keywords; docs/methods.md has a table.
"""

from __future__ import annotations

from segquant.presets.ours import auto, plan, segquant_a, segquant_g, segquant_plus, segquant_r
from segquant.presets.rotated import convrot, quarot, quarot_mse, vidit_q
from segquant.presets.rounded import gptq, gptq_mixed, gptq_mse, mse, none, percentile, q_diffusion, rtn
from segquant.presets.settings import Common
from segquant.presets.smoothed import (
    awq,
    ptq4dit,
    smoothquant,
    smoothquant_gptq,
    smoothquant_plus,
    svdquant,
    svdquant_gptq,
)

__all__ = [
    "Common", "auto", "awq", "convrot", "gptq", "gptq_mixed", "gptq_mse", "mse", "none", "percentile", "plan",
    "ptq4dit", "q_diffusion", "quarot", "quarot_mse", "rtn", "segquant_a", "segquant_g", "segquant_plus", "segquant_r",
    "smoothquant", "smoothquant_gptq", "smoothquant_plus", "svdquant", "svdquant_gptq", "vidit_q",
]  # fmt: skip
