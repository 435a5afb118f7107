"""Post-training quantization of diffusion denoisers from their static graph (SegQuant, arXiv 2507.14811)."""

from __future__ import annotations

from segquant import presets
from segquant.errors import QuantizationError
from segquant.graph.find import find_segments
from segquant.graph.segments import Segments
from segquant.layers.linear import QuantConv2d, QuantLinear
from segquant.measure import layer_errors, output_error, output_errors
from segquant.method.spec import Method
from segquant.modules.tensors import model_weight_bytes
from segquant.numerics.formats import PRECISIONS, QuantScheme, QuantSpec
from segquant.observers.observe import observe
from segquant.observers.stats import InputStats
from segquant.quantize import quantize_
from segquant.serialize import load_quantized, save_quantized

__version__ = "0.2.0"

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
