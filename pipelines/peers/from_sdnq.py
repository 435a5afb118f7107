"""SDNQ (SD.Next Quantization): weights of 2, 3, 4 and 8 bits and e4m3; inputs int8 or e4m3 per token at run time.

No compilation or OpenVINO unless SDNQ's environment variables say so. Inputs of fewer than 32 rows (AdaLN's) stay in
floating point. SDNQ's own exceptions are off. Factors of the low-rank branch have the model's dtype, so they count 16
bits, as ModelOpt's do and as this project stores its own; scales are float32 whatever the model is.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from segquant import QuantScheme, model_weight_bytes
from segquant_bench.pipelines.peers.peer import (
    FACTOR_BYTES,
    Forward,
    Peer,
    branch_rank,
    check_installed,
    check_precision,
    check_rank,
    weight_spec,
)

PACKAGE = "sdnq"
PRECISIONS = ("w8a8_dynamic", "fp8_dynamic", "w4a8_channel", "w4a8", "w8a16", "w4a16", "w3a16", "w2a16")
WHOLE = {"int8": "int8", "fp8": "float8_e4m3fn"}
"""What has no zero point at 8 bits."""
WHOLE_ROW = -1


def sdnq(
    precision: str,
    *,
    svd: bool = False,
    rank: int | None = None,
    hadamard: bool = False,
    zero_point: bool = True,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> Peer:
    """SDNQ without calibration data.

    Args:
        svd: add a low-rank branch (SDNQ's SVDQuant).
        rank: of that branch; None: the median of `segquant.presets.svdquant`'s.
        hadamard: rotate inputs and weights first.
        zero_point: codes of 2, 3 and 4 bits as uint… with a zero point per group, else int….
        skip: globs of module names that stay in floating point.
        seed: of the randomized SVD.
    """
    check_rank(rank)
    scheme = check_precision("sdnq", precision, PRECISIONS)
    check_installed("sdnq", PACKAGE)
    options = {"svd": svd, "rank": rank, "hadamard": hadamard, "zero_point": zero_point}
    apply = functools.partial(_apply, scheme=scheme, options=options)
    return Peer("sdnq", PACKAGE, precision, scheme, apply, options, tuple(skip), seed, _layer_bytes)


def _layer_bytes(layer: nn.Module) -> int:
    """As stored, with 16-bit low-rank factors."""
    factors = [getattr(layer, name, None) for name in ("svd_up", "svd_down")]
    wide = sum(int(each.numel() * (each.element_size() - FACTOR_BYTES)) for each in factors if each is not None)
    return model_weight_bytes(layer) - wide


def _apply(
    model: nn.Module, names: Sequence[str], _: Forward, *, scheme: QuantScheme, options: Mapping[str, Any]
) -> None:
    if not torch.cuda.is_available():
        for switch in ("SDNQ_USE_TORCH_COMPILE", "SDNQ_USE_OPENVINO_MM"):
            os.environ.setdefault(switch, "0")
        logging.getLogger("sdnq").setLevel(logging.ERROR)  # it warns for every model that Triton is missing
    # Put off: the package is optional, and imported only where it is used.
    from sdnq import sdnq_post_load_quant

    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sdnq_post_load_quant(
        model,
        weights_dtype=_weights(scheme, options["zero_point"]),
        group_size=weight_spec(scheme).group_size or WHOLE_ROW,
        use_quantized_matmul=scheme.input is not None,
        use_svd=options["svd"],
        svd_rank=branch_rank(model, names, options["rank"]),
        use_hadamard=options["hadamard"],
        modules_to_not_convert=[f"{name}.weight" for name in sorted(linears - set(names))],
        add_skip_keys=False,
        minimum_allowed_numel=0,
        minimum_allowed_channel_size=0,
    )


def _weights(scheme: QuantScheme, zero_point: bool) -> str:
    dtype = weight_spec(scheme).dtype
    if dtype in WHOLE:
        return WHOLE[dtype]
    return f"u{dtype}" if zero_point else dtype
