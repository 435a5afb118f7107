"""NVIDIA ModelOpt (nvidia-modelopt): absolute maximum, SmoothQuant, AWQ, SVDQuant.

Simulated: weights are rounded in every forward pass. Formats are set by name, without ModelOpt's exceptions
(`proj_out`). Dynamic inputs come on after calibration, as AWQ and SVDQuant calibrate weights alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from segquant import QuantScheme, QuantSpec
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

PACKAGE = "nvidia-modelopt"
INT8 = ("w8a8_tensor", "w8a8", "w8a8_dynamic")
INT4 = ("w4a8_channel", "w4a8", "w4a4", "w4a16")
FLOAT32_BYTES = 4


def modelopt_int8(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """ModelOpt's INT8 default: absolute maxima."""
    return _peer("modelopt_int8", precision, INT8, {"method": "max"}, skip, seed)


def modelopt_fp8(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """FP8 (e4m3) with absolute maxima."""
    return _peer("modelopt_fp8", precision, ("fp8",), {"method": "max"}, skip, seed)


def modelopt_smoothquant(precision: str, *, alpha: float = 0.5, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """ModelOpt's SmoothQuant (2211.10438), for int8 with static inputs; `alpha` as in the paper."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
    algorithm = {"method": "smoothquant", "alpha": alpha}
    return _peer("modelopt_smoothquant", precision, ("w8a8_tensor", "w8a8"), algorithm, skip, seed)


def modelopt_awq(
    precision: str, *, alpha_step: float = 0.1, clip: bool = False, skip: Sequence[str] = (), seed: int = 0
) -> Peer:
    """ModelOpt's AWQ (2306.00978): scales in steps of `alpha_step`; `clip` also searches ranges."""
    if not 0 < alpha_step <= 1:
        raise ValueError(f"alpha_step must lie in (0, 1], not {alpha_step}")
    algorithm = {"method": "awq_full" if clip else "awq_lite", "alpha_step": alpha_step}
    return _peer("modelopt_awq", precision, INT4, algorithm, skip, seed)


def modelopt_svdquant(precision: str, *, rank: int | None = None, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """ModelOpt's SVDQuant (2411.05007): AWQ, then a low-rank branch.

    `rank` is one for all layers; None: the median of `segquant.presets.svdquant`'s.
    """
    check_rank(rank)
    return _peer("modelopt_svdquant", precision, (*INT8, *INT4), {"method": "svdquant", "lowrank": rank}, skip, seed)


def _peer(
    name: str, precision: str, able: Sequence[str], algorithm: dict[str, Any], skip: Sequence[str], seed: int
) -> Peer:
    scheme = check_precision(name, precision, able)
    check_installed(name, PACKAGE)
    apply = functools.partial(_apply, scheme=scheme, algorithm=algorithm)
    size = functools.partial(_layer_bytes, spec=weight_spec(scheme))
    return Peer(name, PACKAGE, precision, scheme, apply, algorithm, tuple(skip), seed, size)


def _apply(
    model: nn.Module, names: Sequence[str], forward: Forward, *, scheme: QuantScheme, algorithm: dict[str, Any]
) -> None:
    # Put off: the package is optional, and imported only where it is used.
    import modelopt.torch.quantization as mtq

    if algorithm["method"] == "svdquant":
        algorithm = {**algorithm, "lowrank": branch_rank(model, names, algorithm["lowrank"])}
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    entries += [{"quantizer_name": f"{name}.weight_quantizer", "cfg": _weight(weight_spec(scheme))} for name in names]
    inputs = []
    if scheme.input is not None:
        cfg = _input(scheme.input)
        inputs = [{"quantizer_name": f"{name}.input_quantizer", "cfg": cfg, "enable": True} for name in names]
    early = inputs if scheme.static_input else []
    mtq.quantize(model, {"quant_cfg": entries + early, "algorithm": algorithm}, forward)
    if inputs and not early:
        mtq.set_quantizer_by_cfg(model, inputs)
    if scheme.input is not None and scheme.input.granularity == "group":
        for name in names:
            cast(Any, model.get_submodule(name)).input_quantizer.register_forward_pre_hook(_forget_shape)


def _forget_shape(quantizer: nn.Module, _: Any) -> None:
    # ModelOpt refuses all shapes but the first.
    for remembered in ("_original_shape", "_block_reshape_size"):
        if hasattr(quantizer, remembered):
            delattr(quantizer, remembered)


def _bits(spec: QuantSpec) -> int | tuple[int, int]:
    """ModelOpt's num_bits: an integer's, or (exponent, mantissa)."""
    return (4, 3) if spec.dtype == "fp8" else spec.bits


def _weight(spec: QuantSpec) -> dict[str, Any]:
    if spec.granularity == "group":
        return {"num_bits": _bits(spec), "block_sizes": {-1: spec.group_size}}
    return {"num_bits": _bits(spec), "axis": 0 if spec.granularity == "channel" else None}


def _input(spec: QuantSpec) -> dict[str, Any]:
    if spec.granularity == "token":
        return {"num_bits": _bits(spec), "type": "dynamic", "block_sizes": {-1: None, "type": "dynamic"}}
    if spec.granularity == "group":
        return {"num_bits": _bits(spec), "type": "dynamic", "block_sizes": {-1: spec.group_size}}
    return {"num_bits": _bits(spec), "axis": None}


def _layer_bytes(layer: nn.Module, spec: QuantSpec) -> int:
    """Codes, float32 scales, bias, 16-bit low-rank factors."""
    made: Any = layer
    weights, inputs = made.weight_quantizer, made.input_quantizer
    scales = [weights.amax, inputs.amax, inputs.pre_quant_scale]
    total: int = made.weight.numel() * spec.bits // 8 + FLOAT32_BYTES * sum(x.numel() for x in scales if x is not None)
    if made.bias is not None:
        total += made.bias.numel() * made.bias.element_size()
    factors = [getattr(weights, name, None) for name in ("svdquant_lora_a", "svdquant_lora_b")]
    return total + FACTOR_BYTES * sum(int(factor.numel()) for factor in factors if factor is not None)
