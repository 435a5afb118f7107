"""Post-training quantization of diffusion denoisers from their static graph (SegQuant, arXiv 2507.14811)."""

from __future__ import annotations

from segquant import presets
from segquant.errors import QuantizationError
from segquant.graph import find_segments
from segquant.layers import QuantConv2d, QuantLinear
from segquant.measure import layer_errors, model_weight_bytes, output_error, output_errors
from segquant.observe import InputStats, observe
from segquant.quantize import quantize_
from segquant.segments import Segments
from segquant.serialize import load_quantized, save_quantized
from segquant.spec import PRECISIONS, Method, QuantScheme, QuantSpec

__all__ = [
    "PRECISIONS",
    "InputStats",
    "Method",
    "QuantConv2d",
    "QuantLinear",
    "QuantScheme",
    "QuantSpec",
    "QuantizationError",
    "Segments",
    "find_segments",
    "layer_errors",
    "load_quantized",
    "model_weight_bytes",
    "observe",
    "output_error",
    "output_errors",
    "presets",
    "quantize_",
    "save_quantized",
]
