"""Folders of torchao's own int8 tensors, which diffusers loads without segquant."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant.checks import checked
from segquant.deploy.plain import bias_of, byte_codes, float_layer, has_zero_point, row_scales, why_not_plain, widened
from segquant.deploy.report import ExportedLayer, ExportReport, refuse_unfit, size_of
from segquant.errors import QuantizationError
from segquant.layers.adapters import refuse_attached
from segquant.layers.foreign import METHOD
from segquant.layers.layer import QuantLayer
from segquant.modules.calls import call
from segquant.modules.swap import evaluating, swap_
from segquant.modules.wrappers import unwrapped

NEEDS = "diffusers>=0.42 and torchao>=0.16"
TRANSFORMS = ("smoothing",)
"""torchao multiplies inputs by a vector before it quantizes them."""


@checked()
def export_torchao(model: nn.Module, directory: str | Path, batch: Any = None, *, rest: str = "refuse") -> ExportReport:
    """Write a diffusers model whose int8 layers are torchao's tensors; returns what became of each layer.

    It is read by `from_pretrained(directory, torch_dtype=…)` where diffusers and torchao are installed; biases, layers
    left in float and the arithmetic between layers follow `torch_dtype`. Dynamic scales are torchao's: largest
    magnitude / 127.5 instead of / 127.

    Args:
        model: a quantized model of diffusers; not modified.
        batch: arguments of a forward; needed by layers of static scales, whose files depend on the inputs' dimensions.
        rest: "refuse" raises where layers do not fit, "float" writes them dequantized.

    Raises:
        QuantizationError: a package is missing, layers do not fit, adapters are attached, or static scales have no
            batch.
    """
    packages = _packages()
    with unwrapped(model) as inner:
        layers = {name: m for name, m in inner.named_modules() if isinstance(m, QuantLayer)}
        if not layers or not hasattr(type(inner), METHOD):
            raise QuantizationError(
                f"export_torchao writes a quantized model of diffusers, and this is a {type(inner).__name__} with "
                f"{len(layers)} quantized layers; quantize a diffusers model first"
            )
        refuse_attached(inner, "export_torchao")
        reasons = {name: why for name, layer in layers.items() if (why := why_not_plain(layer, TRANSFORMS))}
        refuse_unfit(reasons, rest, "torchao")
        kept = {name: layer for name, layer in layers.items() if name not in reasons}
        dimensions = _dimensions(inner, kept, batch)
        made, rows = _replacements(layers, reasons, dimensions, packages)
        _save(_copied(inner, layers, made), directory, list(reasons), kept, packages)
    return ExportReport(Path(directory), tuple(rows))


def _packages() -> Any:
    try:
        import torchao.quantization  # takes seconds
        from diffusers import TorchAoConfig  # noqa: F401
    except ImportError as error:
        raise QuantizationError(f"export_torchao needs {NEEDS} ({error}); install them") from error
    return torchao.quantization


def _dimensions(model: nn.Module, layers: Mapping[str, QuantLayer], batch: Any) -> dict[str, int]:
    """Dimensions of the input of every layer with static scales, by one forward."""
    static = {name: layer for name, layer in layers.items() if layer.layout.scheme.static_input}
    if not static:
        return {}
    if batch is None:
        raise QuantizationError(
            f"{next(iter(static))} has static scales, whose shape in a file is that of its inputs; give batch=, the "
            "arguments of one forward"
        )
    found: dict[str, int] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: found.__setitem__(name, args[0].dim()))
        for name, layer in static.items()
    ]
    try:
        with torch.no_grad(), evaluating(model):
            call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in static if name not in found]
    if missing:
        raise QuantizationError(f"{missing[0]} is not called by the batch that was given; give one that calls it")
    return found


def _replacements(
    layers: Mapping[str, QuantLayer], reasons: Mapping[str, str], dimensions: Mapping[str, int], packages: Any
) -> tuple[dict[int, nn.Module], list[ExportedLayer]]:
    made: dict[int, nn.Module] = {}
    rows = []
    for name, layer in layers.items():
        if name in reasons:
            plain = float_layer(layer)
            rows.append(ExportedLayer(name, "float", reasons[name], size_of([plain.weight])))
            made[id(layer)] = plain
            continue
        weight = _tensor(layer, dimensions.get(name, 0), packages)
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = bias_of(layer, weight.dtype)  # type: ignore[assignment]
        made[id(layer)] = linear.train(layer.training)
        rows.append(
            ExportedLayer(name, "int8", widened(layer), size_of([weight.qdata, weight.scale, weight.act_pre_scale]))
        )
    return made, rows


def _tensor(layer: QuantLayer, dimensions: int, packages: Any) -> Any:
    """torchao's tensor of a layer; `dimensions` of its input where scales are static."""
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs  # see _packages

    layout, tensors = layer.layout, layer.tensors()
    spec = layout.scheme.input
    assert spec is not None
    zero = tensors.get("input_zero")
    asymmetric = has_zero_point(layer)
    kinds = packages.MappingType
    smooth = tensors.get("smooth")
    shape = (1,) * dimensions
    return packages.Int8Tensor(
        byte_codes(layer),
        row_scales(layer),
        [1, layout.in_features],
        layer.float_like.dtype,
        act_pre_scale=None if smooth is None else smooth[0].reciprocal(),
        act_quant_scale=tensors["input_scale"].reshape(shape) if dimensions else None,
        act_quant_zero_point=None if zero is None else (zero.reshape(shape) - 128).to(torch.int8),
        act_quant_kwargs=QuantizeTensorToInt8Kwargs(
            packages.PerRow() if spec.granularity == "token" else packages.PerTensor(),
            kinds.ASYMMETRIC if asymmetric else kinds.SYMMETRIC,
        ),
    )


def _copied(model: nn.Module, layers: Mapping[str, QuantLayer], made: Mapping[int, nn.Module]) -> nn.Module:
    """The model with other layers; tensors are shared with it."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shared |= {id(layer): layer for layer in layers.values()}
    copied = copy.deepcopy(model, shared)
    vars(copied).pop(METHOD, None)
    swap_(copied, made)
    return copied


def _save(
    model: nn.Module, directory: str | Path, left: list[str], kept: Mapping[str, QuantLayer], packages: Any
) -> None:
    from diffusers import TorchAoConfig
    from diffusers.quantizers.torchao import TorchAoHfQuantizer

    static = any(layer.layout.scheme.static_input for layer in kept.values())
    # what diffusers asks of a config; the tensors tell how each is quantized
    kind = packages.Int8StaticActivationInt8WeightConfig if static else packages.Int8DynamicActivationInt8WeightConfig
    config = TorchAoConfig(kind(), modules_to_not_convert=left)
    quantizer = TorchAoHfQuantizer(config, pre_quantized=True)
    quantizer.validate_environment()
    model.register_to_config(quantization_config=config)  # type: ignore[operator]
    model.hf_quantizer = quantizer
    model.save_pretrained(directory)  # type: ignore[operator]
