"""bitsandbytes on a CPU: NF4 and FP4 weights in blocks of 64, and LLM.int8.

Scales are float32 maxima of the blocks or rows. FP4 is bitsandbytes' own, not OCP's e2m1: its least value is 1/192 of
its largest, not 1/12. Products are float32 on every processor: bitsandbytes' own kernel for AVX512-BF16 rounds inputs
to bfloat16, and fails where outputs are no multiple of 32. Linears only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from segquant.bounds import at_most
from segquant_bench.pipelines.peers.peer import Apply, Forward, Peer, check_installed, check_precision, linear_at

PACKAGE = "bitsandbytes"


def bnb_nf4(precision: str, *, double_quant: bool = False, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """QLoRA's NF4 (2305.14314); `double_quant` keeps scales in 8 bits, with a second scale for 256 of them."""
    apply = functools.partial(_four_bits, kind="nf4", double_quant=double_quant)
    return _peer("bnb_nf4", precision, "w4a16_nf4", apply, {"double_quant": double_quant}, skip, seed)


def bnb_fp4(precision: str, *, double_quant: bool = False, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """bitsandbytes' FP4, in the blocks of w4a16; `double_quant` as for `bnb_nf4`."""
    apply = functools.partial(_four_bits, kind="fp4", double_quant=double_quant)
    return _peer("bnb_fp4", precision, "w4a16", apply, {"double_quant": double_quant}, skip, seed)


def bnb_int8(precision: str, *, threshold: float = 6.0, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """LLM.int8 (2208.07339): inputs per token; channels with a value of at least `threshold` stay floats.

    It computes in float16. 0 leaves no channel out.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, not {threshold}; 6 is the paper's, 0 leaves no channel out")
    at_most("threshold", threshold)
    apply = functools.partial(_eight_bits, threshold=threshold)
    return _peer("bnb_int8", precision, "w8a8_dynamic", apply, {"threshold": threshold}, skip, seed)


def _peer(
    name: str, precision: str, able: str, apply: Apply, options: Mapping[str, Any], skip: Sequence[str], seed: int
) -> Peer:
    scheme = check_precision(name, precision, (able,))
    check_installed(name, PACKAGE)
    return Peer(name, PACKAGE, precision, scheme, apply, options, tuple(skip), seed, _saved_bytes)


def _four_bits(model: nn.Module, names: Sequence[str], _: Forward, *, kind: str, double_quant: bool) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in names:
        linear = linear_at(model, name)
        options = {"compress_statistics": double_quant, "quant_type": kind}
        made = Linear4bit(linear.in_features, linear.out_features, compute_dtype=linear.weight.dtype, device="meta")
        made.weight = Params4bit(linear.weight.detach(), module=made, **options)
        made.support_avx512bf16_for_cpu = False
        _replace(model, name, linear, made)


def _eight_bits(model: nn.Module, names: Sequence[str], _: Forward, *, threshold: float) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    # it says at every call that it computes in float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for name in names:
        linear = linear_at(model, name)
        sizes = linear.in_features, linear.out_features
        made = Linear8bitLt(*sizes, has_fp16_weights=False, threshold=threshold, device="meta")
        made.weight = Int8Params(linear.weight.detach(), requires_grad=False)
        _replace(model, name, linear, made)


def _replace(model: nn.Module, name: str, linear: nn.Linear, made: nn.Linear) -> None:
    made.bias = linear.bias
    model.set_submodule(name, made.to(linear.weight.device).eval())  # `to` quantizes


def _saved_bytes(layer: nn.Module) -> int:
    """As bitsandbytes saves it: codes, scales, its table and its record of shapes, bias."""
    return sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
