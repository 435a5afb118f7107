"""PyTorch's torchao: int8 with dynamic or static inputs, and int4 weights, on a CPU.

Packed int4 needs CUDA; IntxWeightOnlyConfig and Int8DynamicActivationIntxWeightConfig stand in, a code per byte.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from segquant import QuantScheme, QuantSpec, model_weight_bytes
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.peers.peer import Forward, Peer, check_installed, check_precision, weight_spec

PACKAGE = "torchao"


def torchao_int8_dynamic(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """Int8DynamicActivationInt8WeightConfig: weights per channel, inputs per token."""
    return _peer("torchao_int8_dynamic", precision, ("w8a8_dynamic",), _dynamic, skip, seed)


def torchao_int8_static(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """Int8StaticActivationInt8WeightConfig, scales from torchao's min-max observer."""
    return _peer("torchao_int8_static", precision, ("w8a8_tensor", "w8a8"), _static, skip, seed)


def torchao_int4(precision: str, *, skip: Sequence[str] = (), seed: int = 0) -> Peer:
    """Int4 weights per group or channel; inputs untouched, or int8 per token with a zero point."""
    able = ("w4a8_channel", "w4a8", "w4a16")
    return _peer("torchao_int4", precision, able, _int4, skip, seed, _packed_bytes)


def _peer(
    name: str, precision: str, able: Sequence[str], apply: Any, skip: Sequence[str], seed: int, size: Any = None
) -> Peer:
    scheme = check_precision(name, precision, able)
    check_installed(name, PACKAGE)
    bound = functools.partial(apply, scheme=scheme)
    return Peer(name, PACKAGE, precision, scheme, bound, {}, tuple(skip), seed, size)


def _dynamic(model: nn.Module, names: Sequence[str], _: Forward, *, scheme: QuantScheme) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    quantize_with(model, names, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))


def _int4(model: nn.Module, names: Sequence[str], _: Forward, *, scheme: QuantScheme) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig

    int4 = cast(Any, torch).int4  # torch's stubs lack it
    chosen = granularity(weight_spec(scheme))
    if scheme.input is None:
        config = IntxWeightOnlyConfig(weight_dtype=int4, granularity=chosen)
    else:
        config = Int8DynamicActivationIntxWeightConfig(weight_dtype=int4, weight_granularity=chosen)
    quantize_with(model, names, config)


def _static(model: nn.Module, names: Sequence[str], forward: Forward, *, scheme: QuantScheme) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import Int8StaticActivationInt8WeightConfig, PerRow, PerTensor, quantize_

    weight = PerTensor() if weight_spec(scheme).granularity == "tensor" else PerRow()
    for name, scale in _input_scales(model, names, forward).items():
        config = Int8StaticActivationInt8WeightConfig(
            act_quant_scale=scale, granularity=[PerTensor(), weight], set_inductor_config=False
        )
        quantize_(model.get_submodule(name), config)


def _input_scales(model: nn.Module, names: Sequence[str], forward: Forward) -> dict[str, Tensor]:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import MappingType, PerTensor
    from torchao.quantization.observer import AffineQuantizedMinMaxObserver

    observers: dict[str, Any] = {}
    axes: dict[str, set[int]] = {name: set() for name in names}
    handles = []
    for name in names:
        observers[name] = AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, torch.int8, PerTensor())
        hook = _watch(observers[name], axes[name])
        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
    try:
        forward(model)
    finally:
        for handle in handles:
            handle.remove()
    mixed = [name for name, found in axes.items() if len(found) > 1]
    if mixed:
        raise PipelineError(
            f"torchao_int8_static wants inputs of one shape, but {mixed[0]} sees {sorted(axes[mixed[0]])} axes; "
            "add it to quantizer.skip"
        )
    return {
        name: observer.calculate_qparams()[0].float().reshape((1,) * axes[name].pop())
        for name, observer in observers.items()
    }


def _watch(observer: nn.Module, axes: set[int]) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        axes.add(args[0].ndim)
        observer(args[0])

    return hook


def quantize_with(model: nn.Module, names: Sequence[str], config: Any) -> None:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import quantize_

    wanted = set(names)
    quantize_(model, config, filter_fn=lambda module, name: name in wanted and isinstance(module, nn.Linear))


def granularity(spec: QuantSpec) -> Any:
    # Put off: the package is optional, and imported only where it is used.
    from torchao.quantization import PerAxis, PerGroup

    return PerGroup(spec.group_size) if spec.granularity == "group" else PerAxis(0)


def _packed_bytes(layer: nn.Module) -> int:
    weight: Any = layer.weight
    return model_weight_bytes(layer) - int(weight.qdata.numel()) // 2
