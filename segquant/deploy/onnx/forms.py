"""How a profile writes a quantized layer, or why it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from segquant.errors import QuantizationError, nearest
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantConv2d
from segquant.transforms.low_rank import LowRank
from segquant.transforms.shift import Shift
from segquant.transforms.smoothing import Smoothing

INT8 = "int8"
"""8-bit codes of inputs and weights, integer products."""
BLOCKS = "4-bit blocks"
"""4-bit weights with a scale per block; the engine multiplies them as it likes."""
WEIGHTS = "weights"
"""Codes of weights, float products: the inputs are not quantized."""
FP8 = "fp8"
FLOAT = "float"
"""Asked for by rest="float": as WEIGHTS, though the layer's inputs are quantized elsewhere."""


@dataclass(frozen=True)
class Profile:
    """What an engine takes.

    Args:
        symmetric: signed 8-bit inputs with zero point 0, else unsigned ones.
        fused: operators of ONNX Runtime's own for 4-bit blocks and convolutions.
        fp8: it multiplies e4m3fn.
    """

    name: str
    symmetric: bool = False
    fused: bool = False
    fp8: bool = False


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("ort", fused=True),
        Profile("openvino"),
        Profile("tensorrt", symmetric=True, fp8=True),
    )
}


def profile_of(name: str) -> Profile:
    if name not in PROFILES:
        raise QuantizationError(f"no profile {name!r}; {nearest(name, PROFILES)}")
    return PROFILES[name]


def form_of(layer: QuantLayer, profile: Profile) -> str:
    """The form of a layer that `why_not` does not refuse."""
    weight, given = layer.layout.weight_spec, layer.layout.scheme.input
    if given is None:
        return BLOCKS if _in_blocks(layer, profile) else WEIGHTS
    if weight.dtype == "fp8":
        return FP8
    return BLOCKS if _in_blocks(layer, profile) else INT8


def why_not(layer: QuantLayer, profile: Profile) -> str | None:
    """Why a profile has no form for a layer, as the end of a sentence."""
    layout = layer.layout
    weight, given = layout.weight_spec, layout.scheme.input
    if given is None:
        return None
    if "fp8" in (weight.dtype, given.dtype):
        if not profile.fp8:
            return f"{profile.name} multiplies no fp8; use w8a8, or profile='tensorrt'"
        if (weight.dtype, given.dtype) != ("fp8", "fp8") or given.dynamic or len(layout.weight_columns) > 1:
            return "fp8 needs weights and static inputs in one piece, both fp8; use the precision fp8 without seglinear"
    zeros = layout.input_grid is not None and layout.input_grid.zero_point
    if profile.symmetric and zeros:
        return f"{profile.name} takes zero points of 0 alone; quantize with deploy='tensorrt'"
    if isinstance(layer, QuantConv2d):
        if given.granularity in ("token", "group"):
            return "no engine has integer convolutions with a scale per patch; use w8a8 (static inputs)"
        if weight.granularity == "group":
            return "no engine has integer convolutions with weights in groups; use w8a8 or w4a8_channel"
        if given.dynamic and zeros:
            return "a convolution's zero point must be known beforehand; use w8a8 (static inputs)"
    return None


def as_image(layer: QuantLayer, form: str) -> bool:
    """Whether a layer is written as a convolution, and not as a linear (on patches)."""
    kept = all(isinstance(transform, (Smoothing, LowRank, Shift)) for transform in layer.layout.transforms)
    return isinstance(layer, QuantConv2d) and kept and form != BLOCKS


def _in_blocks(layer: QuantLayer, profile: Profile) -> bool:
    spec = layer.layout.weight_spec
    if spec.dtype != "int4" or not spec.group_size or isinstance(layer, QuantConv2d):
        return False
    power = spec.group_size >= 16 and not spec.group_size & (spec.group_size - 1)
    return power if profile.fused else True
