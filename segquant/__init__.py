"""Post-training quantization of diffusion denoisers from their static graph (SegQuant, arXiv 2507.14811)."""

from __future__ import annotations

from segquant import presets
from segquant.auto.sensitivity import guidance
from segquant.calibrators.protocol import Calibrator
from segquant.deploy.comfy import export_comfy
from segquant.deploy.onnx.export import export_onnx
from segquant.deploy.torch_export import export_package
from segquant.deploy.torchao import export_torchao
from segquant.errors import QuantizationError
from segquant.graph.find import find_segments
from segquant.graph.segments import Segments
from segquant.kernels.backend import Backend
from segquant.layers.backends import BackendTable, backends, set_backend_
from segquant.layers.linear import QuantConv2d, QuantLinear
from segquant.measure import layer_errors, output_error, output_errors
from segquant.method.spec import Method
from segquant.modules.tensors import model_weight_bytes
from segquant.numerics.formats import QuantScheme, QuantSpec
from segquant.numerics.precisions import PRECISIONS
from segquant.numerics.transform import Transform
from segquant.observers.observe import observe
from segquant.observers.stats import InputStats
from segquant.optimizers.protocol import Optimizer, Rotation
from segquant.quantize.outcome import Outcome
from segquant.quantize.run import quantize_, quantize_with_outcome_
from segquant.ranges.protocol import Range
from segquant.reconstruct.calibrator import AdaRound
from segquant.registry import register
from segquant.serialize import load_quantized, read_outcome, save_quantized

__version__ = "0.2.0"

__all__ = [
    "PRECISIONS",
    "AdaRound",
    "Backend",
    "BackendTable",
    "Calibrator",
    "InputStats",
    "Method",
    "Optimizer",
    "Outcome",
    "QuantConv2d",
    "QuantLinear",
    "QuantScheme",
    "QuantSpec",
    "QuantizationError",
    "Range",
    "Rotation",
    "Segments",
    "Transform",
    "backends",
    "export_comfy",
    "export_package",
    "export_torchao",
    "export_onnx",
    "find_segments",
    "guidance",
    "layer_errors",
    "load_quantized",
    "model_weight_bytes",
    "observe",
    "output_error",
    "output_errors",
    "presets",
    "quantize_",
    "quantize_with_outcome_",
    "read_outcome",
    "register",
    "save_quantized",
    "set_backend_",
]
