"""How a profile writes a quantized layer, or why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segquant.errors import QuantizationError, nearest
from segquant.kernels.integers import kernel_bits
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantConv2d
from segquant.numerics.formats import QuantScheme, QuantSpec
from segquant.numerics.functional import uniform
from segquant.numerics.layout import Layout
from segquant.numerics.weight_grid import counts_from_least
from segquant.transforms.low_rank import LowRank
from segquant.transforms.shift import Shift
from segquant.transforms.smoothing import Smoothing

INT8 = "int8"
"""8-bit codes of inputs and weights, integer products."""
BLOCKS = "4-bit blocks"
"""4-bit weights with a scale per block; the engine multiplies them as it likes."""
WIDE_BLOCKS = "8-bit blocks"
"""The same where TensorRT has no 4-bit tensor for the codes; see `holds_four_bits`."""
WEIGHTS = "weights"
"""Codes of weights, float products: the inputs are not quantized."""
FP8 = "fp8"
FLOATS = ("fp8", "fp8_e5m2")
"""Floats that DequantizeLinear reads, by our names."""
FLOAT = "float"
"""Asked for by rest="float": as WEIGHTS, though the layer's inputs are quantized elsewhere."""


@dataclass(frozen=True)
class Profile:
    """What an engine takes.

    Args:
        symmetric: signed 8-bit inputs with zero point 0, else unsigned ones.
        fused: operators of ONNX Runtime's own for 4-bit blocks and convolutions.
        fp8: it multiplies e4m3fn.
        rewritten: attention and modulation are written as `rewrites` has them.
        coded_attention: it multiplies 8-bit codes of queries and keys as integers.
    """

    name: str
    symmetric: bool = False
    fused: bool = False
    fp8: bool = False
    rewritten: bool = False
    coded_attention: bool = False


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("ort", fused=True),
        Profile("openvino", rewritten=True, coded_attention=True),
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
    if weight.dtype == "fp8" and given is not None:
        return FP8
    if not _in_blocks(layer, profile):
        return WEIGHTS if given is None else INT8
    fours = all(holds_four_bits(weight, profile, size) for size in layer.layout.branches)
    return BLOCKS if fours else WIDE_BLOCKS


def holds_four_bits(spec: QuantSpec, profile: Profile, rows: int) -> bool:
    """Whether codes of at most 4 bits in groups are stored as such; `rows`: of a branch.

    TensorRT takes them signed, and an even number side by side.
    """
    return not profile.symmetric or (kernel_bits(spec) == 4 and rows % 2 == 0)


def float_bytes(layer: QuantLayer, profile: Profile) -> int:
    """Bytes of a layer that is left in float."""
    if why_no_codes(layer.layout.weight_spec, profile) is None:
        return layer.weight_bytes()
    return layer.in_features * layer.out_features * 4


def why_no_codes(spec: QuantSpec, profile: Profile) -> str | None:
    """Why a profile's DequantizeLinear does not read a weight's codes, as the end of a sentence."""
    if counts_from_least(spec):
        return (
            f"{profile.name} has no weights that count from a least value, as {spec.dtype} with scale_dtype "
            f"{spec.scale_dtype!r} does; int{spec.bits} is the nearest"
        )
    if spec.grid.kind in ("fp", "nf") and spec.dtype not in FLOATS:
        return f"{profile.name} has no {spec.dtype}; int{spec.bits} is the nearest"
    if spec.dtype == "uint8" and profile.symmetric:
        return f"{profile.name} takes zero points of 0 alone; int8 is the nearest"
    if spec.scale_dtype == "q0" and profile.symmetric:
        return f"{profile.name} takes positive scales alone, and those of scale_dtype 'q0' are not; use float16"
    return None


def why_not(layer: QuantLayer, profile: Profile) -> str | None:
    """Why a profile has no form for a layer, as the end of a sentence."""
    layout = layer.layout
    weight, given = layout.weight_spec, layout.scheme.input
    if given is None:
        return why_no_codes(weight, profile)
    reason = _why_no_product(layout, weight, given, profile) or why_no_codes(weight, profile)
    if reason is not None:
        return reason
    zeros = layout.input_grid is not None and layout.input_grid.zero_point
    if profile.symmetric and zeros:
        advice = f"int{given.bits} inputs are" if given.zero_point else "deploy='tensorrt' when quantizing is"
        return f"{profile.name} takes zero points of 0 alone; {advice} the nearest"
    if isinstance(layer, QuantConv2d):
        if given.granularity in ("token", "group"):
            return "no engine has integer convolutions with a scale per patch; use w8a8 (static inputs)"
        if weight.granularity == "group":
            return "no engine has integer convolutions with weights in groups; use w8a8 or w4a8_channel"
        if given.dynamic and zeros:
            return "a convolution's zero point must be known beforehand; use w8a8 (static inputs)"
        if weight.dtype == "uint8" and profile.fused:
            return "ort has no integer convolutions with zero points of weights; use w8a8, or profile='openvino'"
    return None


def why_no_scheme(scheme: QuantScheme, profile: Profile) -> str | None:
    """Why a profile has no form for any layer of such numbers, as the end of a sentence; None where it may have."""
    weight, given = scheme.weight, scheme.input
    if weight is None:
        return None
    return (None if given is None else _why_no_floats(_floats(weight, given), profile)) or why_no_codes(weight, profile)


def _floats(weight: QuantSpec, given: QuantSpec) -> list[str]:
    return [spec.dtype for spec in (weight, given) if spec.grid.kind not in ("int", "uint")]


def _why_no_floats(floats: Sequence[str], profile: Profile) -> str | None:
    other = next((dtype for dtype in floats if dtype != "fp8"), None)
    if other is not None:
        return f"{profile.name} multiplies no {other}; use {'fp8' if profile.fp8 else 'w8a8'}"
    if floats and not profile.fp8:
        return f"{profile.name} multiplies no fp8; use w8a8, or profile='tensorrt'"
    return None


def _why_no_product(layout: Layout, weight: QuantSpec, given: QuantSpec, profile: Profile) -> str | None:
    """Why no product of such codes is known, by their numbers alone."""
    floats = _floats(weight, given)
    if (reason := _why_no_floats(floats, profile)) is not None:
        return reason
    if floats and (floats != ["fp8", "fp8"] or given.dynamic or len(layout.weight_columns) > 1):
        return "fp8 needs weights and static inputs in one piece, both fp8; use the precision fp8 without seglinear"
    if given.dynamic and given.scale_dtype != "float32":
        return f"{profile.name} takes scales of inputs in float32, and these are {given.scale_dtype}"
    return None


def as_image(layer: QuantLayer, form: str) -> bool:
    """Whether a layer is written as a convolution, and not as a linear (on patches)."""
    kept = all(isinstance(transform, (Smoothing, LowRank, Shift)) for transform in layer.layout.transforms)
    return isinstance(layer, QuantConv2d) and kept and form not in (BLOCKS, WIDE_BLOCKS)


def _in_blocks(layer: QuantLayer, profile: Profile) -> bool:
    spec, given = layer.layout.weight_spec, layer.layout.scheme.input
    if spec.bits > 4 or spec.grid.kind not in ("int", "uint") or not spec.group_size or isinstance(layer, QuantConv2d):
        return False
    if given is not None and given.bits < 8 and not _can_be_rounded(layer):
        return False
    power = spec.group_size >= 16 and not spec.group_size & (spec.group_size - 1)
    return power if profile.fused else True


def _can_be_rounded(layer: QuantLayer) -> bool:
    """Whether `rounded_groups` knows an input of fewer than 8 bits: engines would take it with 8."""
    grid, spec = layer.layout.input_grid, layer.layout.scheme.input
    assert grid is not None and spec is not None
    return spec.granularity in ("token", "group") and not grid.zero_point and uniform(grid.pieces)
