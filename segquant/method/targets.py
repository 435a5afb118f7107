"""Which layers a method quantizes, how, and where they are cut."""

from __future__ import annotations

import fnmatch
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from segquant.errors import QuantizationError
from segquant.graph.control_cuts import random_cuts, skip_cuts, wrong_cuts
from segquant.graph.segments import Segments
from segquant.method.spec import Method
from segquant.modules.layers import quantizable, quantized_count, refuse_lazy, width_of
from segquant.numerics.formats import QuantScheme, QuantSpec


def targets(model: nn.Module, method: Method) -> dict[str, nn.Module]:
    """The layers that `method` quantizes, by first name."""
    layers = quantizable(model, method.targets.convolutions)
    return {name: module for name, module in layers.items() if method.for_layer(name) is not None}


def refuse_nothing(model: nn.Module, layers: Mapping[str, nn.Module], method: Method) -> None:
    """QuantizationError with the reason if `layers` is empty."""
    if not layers:
        raise QuantizationError(f"method {method.name!r} finds no layer to quantize; {_nothing(model, method)}")


def _nothing(model: nn.Module, method: Method) -> str:
    left = len(quantizable(model, method.targets.convolutions))
    if left:
        return f"skip={list(method.targets.skip)} leaves out all {left} of the model"
    done = quantized_count(model)
    if done:
        return f"it is quantized already ({done} layers): give the float model"
    convolutions = len(quantizable(model))
    if convolutions:
        return f"{type(model).__name__} has no nn.Linear, and {convolutions} nn.Conv2d: set convolutions=True"
    return (
        f"{type(model).__name__} has no nn.Linear and no ungrouped nn.Conv2d among its {len(list(model.modules()))} "
        "modules: give the module that holds the layers"
    )


def refuse_altered(layers: Mapping[str, nn.Module]) -> None:
    """QuantizationError for layers with a forward of their own, with hooks, or without a weight yet."""
    for name, layer in layers.items():
        refuse_lazy(layer, name)
        if "_hf_hook" in vars(layer):
            raise QuantizationError(
                f"layer {name!r} ({type(layer).__name__}) has a hook of accelerate, which moves its weight; take the "
                "hooks off (accelerate.hooks.remove_hook_from_module(model, recurse=True)), quantize, set them again"
            )
        reason = _alteration(layer)
        if reason:
            raise QuantizationError(
                f"layer {name!r} ({type(layer).__name__}) has {reason}, which its quantized layer would not have; put "
                f"what that does into the weight, or leave the layer in floating point with skip=[{name!r}]"
            )


def _alteration(layer: nn.Module) -> str:
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    methods = ("forward", "_conv_forward") if kind is nn.Conv2d else ("forward",)
    if any(getattr(type(layer), name) is not getattr(kind, name) or name in vars(layer) for name in methods):
        return "a forward of its own"
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    return "" if all(map(_is_ours, hooks)) else "forward hooks"


def _is_ours(hook: object) -> bool:
    return (getattr(hook, "__module__", None) or "").partition(".")[0] == __name__.partition(".")[0]


def layer_methods(layers: Mapping[str, nn.Module], method: Method) -> dict[str, Method]:
    found = {name: method.for_layer(name) for name in layers}
    return {name: layer_method(entry, layers[name]) for name, entry in found.items() if entry is not None}


def refuse_unmatched(model: nn.Module, method: Method) -> None:
    """QuantizationError for an override or a glob of `skip` that matches no layer."""
    names, every = list(quantizable(model, method.targets.convolutions)), list(quantizable(model))
    asked = [("override", pattern, names) for pattern, _ in method.targets.overrides]
    asked += [("skip", pattern, every) for pattern in method.targets.skip]  # a convolution may be named in any case
    for what, pattern, known in asked:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise QuantizationError(
                f"{what} {pattern!r} matches none of the model's {len(known)} layers ({', '.join(known[:3])} …); "
                "correct the glob or leave it out"
            )


def control_cuts(segments: Mapping[str, Segments], methods: Mapping[str, Method]) -> dict[str, Segments]:
    """The graph's cuts, those of its skips, or the controls of Table 6."""
    found = dict(segments)
    for name, method in methods.items():
        if name not in found or method.cuts.control == "graph":
            continue
        specs = (method.scheme.weight, method.scheme.input)
        multiple = math.lcm(*(spec.block for spec in specs if spec is not None and spec.block))
        if method.cuts.control == "skips":
            found[name] = skip_cuts(found[name])
        elif method.cuts.control == "random":
            found[name] = random_cuts(found[name], zlib.crc32(name.encode()) ^ method.seed, multiple=multiple)
        else:
            found[name] = wrong_cuts(found[name], multiple=multiple)
    return found


def layer_method(method: Method, module: nn.Module) -> Method:
    """What of a method a layer can do.

    Convolutions are not rotated, and get a smaller group size if the method's does not divide them; those that no
    super-block divides keep float16 scales.
    """
    if not isinstance(module, nn.Conv2d):
        return method
    width, scheme = width_of(module), method.scheme
    fitted = QuantScheme(*(_fitted(spec, width) for spec in (scheme.weight, scheme.input)))
    return replace(method, rotation=None, scheme=fitted, targets=replace(method.targets, overrides=()))


def _fitted(spec: QuantSpec | None, width: int) -> QuantSpec | None:
    if spec is None or not spec.block or not spec.group_size or width % spec.block == 0:
        return spec
    size = max(size for size in range(1, spec.group_size + 1) if width % size == 0)
    kept = spec.scale_dtype if spec.block == spec.group_size else "q1" if spec.zero_point else "float16"
    return replace(spec, group_size=size, scale_dtype=kept)
