"""Methods and precisions in the order of tables, unknown ones last."""

from __future__ import annotations

import re

PRECISIONS = (
    "w8a8_tensor", "w8a8", "w8a8_asym", "w8a8_dynamic", "mxint8", "fp8", "fp8_dynamic", "mxfp8", "w6a6", "mxfp6",
    "w4a8_channel", "w4a8", "w4a8_asym", "w4a6", "w4a4", "mxfp4", "nvfp4", "w8a16", "q8_0", "q6_k", "q5_1", "q5_0",
    "q5_k", "w4a16", "w4a16_nf4", "q4_1", "q4_0", "q4_k", "w3a16", "q3_k", "w2a16", "q2_k",
)  # fmt: skip
"""segquant's, those of fewer bits last."""
BASELINES = (
    "none", "rtn", "percentile", "mse", "smoothquant", "smoothquant_plus", "smoothquant_gptq", "gptq", "gptq_mse",
    "gptq_mixed", "awq", "svdquant", "svdquant_gptq", "quarot", "quarot_mse", "convrot", "vidit_q", "q_diffusion",
    "ptq4dm", "ptq4dit", "ptqd", "tac",
)  # fmt: skip
OURS = ("segquant_a", "segquant_g", "segquant_plus", "segquant_r", "auto", "plan")

Rank = tuple[int, str]


def is_ours(quantizer: str) -> bool:
    """Whether a name or label is SegQuant's or the automatic choice.

    >>> is_ours("auto budget.bytes=1.1"), is_ours("segquant_g+tac"), is_ours("auto-round")
    (True, True, False)
    """
    return re.split(r"[ +@]", quantizer, maxsplit=1)[0] in OURS


def precision_rank(precision: str) -> Rank:
    return _rank(precision, PRECISIONS)


def method_rank(quantizer: str) -> tuple[int, Rank]:
    """Baselines in the order of their papers, others by name, ours last."""
    ours = OURS.index(quantizer) + 1 if quantizer in OURS else 0
    return (ours, _rank(quantizer, BASELINES))


def _rank(name: str, known: tuple[str, ...]) -> Rank:
    return (known.index(name) if name in known else len(known), name)
