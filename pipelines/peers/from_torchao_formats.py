"""torchao's other formats: MX, NVFP4, fp8, and integer weights with scales from HQQ's search.

The products of MX, NVFP4 and fp8 need a GPU. Here torchao quantizes weights and inputs, and the product of what they
stand for is one of floats, as torchao's own emulation of MX computes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from segquant import QuantScheme, model_weight_bytes
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.peers.from_torchao import PACKAGE, granularity, quantize_with
from segquant_bench.pipelines.peers.peer import (
    Apply,
    Forward,
    Peer,
    check_installed,
    check_precision,
    linear_at,
    weight_spec,
)

SCALINGS = ("rceil", "floor", "even", "ceil")
QPARAMS = {"hqq": "HQQ_SCALE_ONLY", "affine": "AFFINE"}
BLOCK = 16
"""Of NVFP4, whose weights have a multiple of it on both sides."""
LEAST = 1e-12
"""What a token's maximum counts as at least (torchao's `activation_value_lb`): it would make NaN of zeros."""


def torchao_mx(precision: str, *, scaling: str = "rceil", skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """MXTensor, weights and inputs, in torchao's emulation.

    Args:
        scaling: how a block's maximum becomes its exponent: torchao's own default, or the specification's "floor".
        skip: globs of module names that stay in floating point.
        seed: of nothing; every tool has one.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}")
    able, options = ("mxfp8", "mxfp6", "mxfp4"), {"scaling": scaling}
    return _peer("torchao_mx", precision, able, _mx, options, skip, seed, _mx_bytes)


def torchao_nvfp4(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """NVFP4WeightOnlyConfig, and inputs as NVFP4DynamicActivationNVFP4WeightConfig's: the second scale per call."""
    return _peer("torchao_nvfp4", precision, ("nvfp4",), _nvfp4, {}, skip, seed, _nvfp4_bytes)


def torchao_fp8(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """Float8WeightOnlyConfig per row, and inputs as Float8DynamicActivationFloat8WeightConfig's: per token."""
    return _peer("torchao_fp8", precision, ("fp8_dynamic",), _fp8, {}, skip, seed)


def torchao_intx(precision: str, *, qparams: str = "hqq", skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """IntxWeightOnlyConfig, a code per byte.

    Args:
        qparams: how scales are found: HQQ's search, or "affine" from the maximum.
        skip: globs of module names that stay in floating point.
        seed: of nothing; every tool has one.
    """
    if qparams not in QPARAMS:
        raise ValueError(f"qparams must be one of {', '.join(QPARAMS)}, not {qparams!r}")
    able, options = ("w8a16", "w4a16", "w3a16", "w2a16"), {"qparams": qparams}
    bits = weight_spec(check_precision("torchao_intx", precision, able)).bits
    size = functools.partial(_intx_bytes, bits=bits)
    return _peer("torchao_intx", precision, able, _intx, options, skip, seed, size)


def _peer(
    name: str, precision: str, able: Sequence[str], apply: Callable[..., None], options: Mapping[str, Any],
    skip: Sequence[str], seed: int, size: Callable[[nn.Module], int] | None = None,
) -> Peer:  # fmt: skip
    scheme = check_precision(name, precision, able)
    check_installed(name, PACKAGE)
    bound: Apply = functools.partial(apply, scheme=scheme, **options)
    return Peer(name, PACKAGE, precision, scheme, bound, options, tuple(skip), seed, size)


def _mx(model: nn.Module, names: Sequence[str], _: Forward, *, scheme: QuantScheme, scaling: str) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor, QuantizeTensorToMXKwargs
    from torchao.quantization.quantize_.common import KernelPreference

    elements = {"fp8": torch.float8_e4m3fn, "fp6_e2m3": "fp6_e2m3", "fp4_e2m1": cast(Any, torch).float4_e2m1fn_x2}
    spec = weight_spec(scheme)
    inputs = QuantizeTensorToMXKwargs(
        elem_dtype=elements[spec.dtype],
        block_size=spec.group_size,
        scaling_mode=ScaleCalculationMode(scaling),
        kernel_preference=KernelPreference.EMULATED,
    )
    chosen = inputs.elem_dtype, inputs.block_size, inputs.scaling_mode, inputs.kernel_preference
    for name in names:
        linear = linear_at(model, name)
        weight = MXTensor.to_mx(linear.weight.detach().contiguous(), *chosen, act_quant_kwargs=inputs)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.register_forward_pre_hook(_contiguous)


def _contiguous(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.contiguous() for arg in args)


def _mx_bytes(layer: nn.Module) -> int:
    weight: Any = layer.weight
    wide = weight.qdata.numel() if isinstance(weight.elem_dtype, str) else 0  # fp6, a code per byte
    return model_weight_bytes(layer) - wide // 4


def _nvfp4(model: nn.Module, names: Sequence[str], _: Forward, *, scheme: QuantScheme) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.prototype.mx_formats.inference_workflow import NVFP4WeightOnlyConfig

    odd = [name for name in names if any(size % BLOCK for size in linear_at(model, name).weight.shape)]
    if odd:
        raise PipelineError(
            f"torchao_nvfp4 wants inputs and outputs in multiples of {BLOCK}, but {odd[0]} has "
            f"{list(linear_at(model, odd[0]).weight.shape)}; add it to quantizer.skip"
        )
    quantize_with(model, names, NVFP4WeightOnlyConfig())
    _check_finite("torchao_nvfp4", model, names)
    for name in names:
        linear_at(model, name).register_forward_pre_hook(_through_nvfp4)


def _through_nvfp4(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    x, *rest = args
    largest = x.abs().max()
    if not largest:  # which torchao would divide by
        return args
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    found: Tensor = NVFP4Tensor.to_nvfp4(rows, per_tensor_scale=per_tensor_amax_to_scale(largest)).dequantize(x.dtype)
    return found.reshape(x.shape), *rest


def _nvfp4_bytes(layer: nn.Module) -> int:
    """Without what pads scales to the tiles of tensor cores."""
    weight: Any = layer.weight
    return model_weight_bytes(layer) - int(weight.scale.numel()) + int(weight.numel()) // BLOCK


def _fp8(model: nn.Module, names: Sequence[str], _: Forward, *, scheme: QuantScheme) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import Float8WeightOnlyConfig, PerRow

    quantize_with(model, names, Float8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False))
    _check_finite("torchao_fp8", model, names)
    for name in names:
        linear_at(model, name).register_forward_pre_hook(_through_fp8)


def _through_fp8(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import Float8Tensor, PerRow

    x, *rest = args
    rows = x.reshape(-1, x.shape[-1])
    found: Tensor = Float8Tensor.from_hp(rows, granularity=PerRow(), hp_value_lb=LEAST).dequantize(x.dtype)
    return found.reshape(x.shape), *rest


def _check_finite(tool: str, model: nn.Module, names: Sequence[str]) -> None:
    """torchao divides zeros by the scale of zeros."""
    for name in names:
        weight: Any = linear_at(model, name).weight
        if not bool(weight.dequantize().isfinite().all()):
            raise PipelineError(f"{tool} makes NaN of zeros in the weight of {name}; add it to quantizer.skip")


def _intx(model: nn.Module, names: Sequence[str], _: Forward, *, scheme: QuantScheme, qparams: str) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

    spec = weight_spec(scheme)
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, spec.dtype),
        granularity=granularity(spec),
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm[QPARAMS[qparams]],
    )
    quantize_with(model, names, config)


def _intx_bytes(layer: nn.Module, bits: int) -> int:
    """As packed."""
    weight: Any = layer.weight
    return model_weight_bytes(layer) - int(weight.qdata.numel()) * (8 - bits) // 8
