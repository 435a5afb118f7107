"""GGUF's block formats: quantized by the gguf package, run by diffusers' layer for GGUF files.

gguf cannot quantize to the k formats (q2_k … q6_k), only read them: those are made by llama.cpp, from C. Weights alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn

from segquant_bench.pipelines.peers.peer import Forward, Peer, check_installed, check_precision, linear_at

PACKAGE = "gguf"
PRECISIONS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


def gguf(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """gguf's own rounding, without an importance matrix, which it does not have."""
    scheme = check_precision("gguf", precision, PRECISIONS)
    check_installed("gguf", PACKAGE)
    apply = functools.partial(_apply, kind=precision.upper())
    return Peer("gguf", PACKAGE, precision, scheme, apply, {}, tuple(skip), seed)


def _apply(model: nn.Module, names: Sequence[str], _: Forward, *, kind: str) -> None:
    # Put off: the package is optional, and imported only where it is used.
    import gguf as package
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    stored = package.GGMLQuantizationType[kind]
    for name in names:
        linear = linear_at(model, name)
        weight = linear.weight.detach()
        blocks = torch.from_numpy(package.quantize(weight.float().cpu().numpy(), stored))
        made = GGUFLinear(linear.in_features, linear.out_features, compute_dtype=weight.dtype, device="meta")
        made.weight = GGUFParameter(blocks.to(weight.device), quant_type=stored)
        made.bias = linear.bias
        model.set_submodule(name, made.eval())
