"""Hugging Face's optimum-quanto: int8 and e4m3 weights with static inputs, int4 weights with inputs untouched.

quanto scales inputs statically, by a running mean (momentum 0.9) of each calibration batch's absolute maximum, and
hands quantized tensors on where the next layer wants them. Its int4 weights have a zero point per group; the group
is set to the precision's (quanto's own is 128). Linears alone are quantized, no convolutions or norms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from segquant import QuantScheme
from segquant_bench.pipelines.peers.peer import Forward, Peer, check_installed, check_precision, weight_spec

PACKAGE = "optimum-quanto"
TYPES = {"int8": "qint8", "int4": "qint4", "fp8": "qfloat8_e4m3fn"}


def quanto(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """optimum-quanto at its defaults: quantize, calibrate, freeze."""
    scheme = check_precision("quanto", precision, ("w8a8", "fp8", "w4a16"))
    check_installed("quanto", PACKAGE)
    apply = functools.partial(_apply, scheme=scheme)
    return Peer("quanto", PACKAGE, precision, scheme, apply, {}, tuple(skip), seed)


def _apply(model: nn.Module, names: Sequence[str], forward: Forward, *, scheme: QuantScheme) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from optimum.quanto import Calibration, freeze, quantize

    _unpack_without_compiler()
    spec = weight_spec(scheme)
    inputs = None if scheme.input is None else TYPES[scheme.input.dtype]
    quantize(model, weights=TYPES[spec.dtype], activations=inputs, include=list(names))
    for name in names if spec.group_size else ():
        cast(Any, model.get_submodule(name)).weight_group_size = spec.group_size
    if inputs is not None:
        with Calibration():
            forward(model)
    freeze(model)


def _unpack_without_compiler() -> None:
    """Let quanto unpack int4 codes without the C++ code that it would compile when first used."""
    # Put off: the package is optional, and imported only where it is used.
    from optimum.quanto.library.extensions import cpp

    cpp.ext._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """[n, ...] bytes -> [n · 8 / bits, ...] codes: the lowest bits of all bytes come first."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])
