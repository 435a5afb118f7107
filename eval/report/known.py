"""Which methods and precisions eval knows, and their order in tables; unknown ones stand after them."""

from __future__ import annotations

import re

PRECISIONS = ("w8a8_tensor", "w8a8", "w8a8_dynamic", "fp8", "w4a8_channel", "w4a8", "w4a4", "w4a16")
BASELINES = (
    "none", "rtn", "percentile", "mse", "smoothquant", "smoothquant_plus", "gptq", "awq", "svdquant", "quarot",
    "q_diffusion", "ptq4dm", "ptq4dit", "ptqd", "tac",
)  # fmt: skip
OURS = ("segquant_a", "segquant_g", "segquant_r", "auto", "plan")

Rank = tuple[int, str]


def is_ours(quantizer: str) -> bool:
    """Whether the method is SegQuant's or the automatic choice, given its name or a label that starts with it.

    >>> is_ours("auto budget.bytes=1.1"), is_ours("segquant_g+tac"), is_ours("auto-round")
    (True, True, False)
    """
    return re.split(r"[ +@]", quantizer, maxsplit=1)[0] in OURS


def precision_rank(precision: str) -> Rank:
    """Known precisions in table order, others after them by name."""
    return _rank(precision, PRECISIONS)


def method_rank(quantizer: str) -> tuple[int, Rank]:
    """Baselines in the order of their papers, others by name, ours last."""
    ours = OURS.index(quantizer) + 1 if quantizer in OURS else 0
    return (ours, _rank(quantizer, BASELINES))


def _rank(name: str, known: tuple[str, ...]) -> Rank:
    return (known.index(name) if name in known else len(known), name)
