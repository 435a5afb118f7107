"""Hugging Face's optimum-quanto: int8 and e4m3 with static inputs, int8, int4 and int2 weights alone.

Input scales are running means (momentum 0.9) of batches' absolute maxima. int4 and int2 have a least value per group,
of the precision's size (quanto's own is 128). Linears only.
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
PRECISIONS = ("w8a8", "fp8", "w8a16", "w4a16", "w2a16")
TYPES = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "fp8": "qfloat8_e4m3fn"}


def quanto(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """optimum-quanto at its defaults: quantize, calibrate, freeze."""
    scheme = check_precision("quanto", precision, PRECISIONS)
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
    # Put off: the package is optional, and imported only where it is used.
    from optimum.quanto.library.extensions import cpp

    cpp.ext._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """[n, ...] bytes -> [n · 8 / bits, ...] codes: the lowest bits of all bytes come first."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])
