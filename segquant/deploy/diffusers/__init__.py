"""Plug-in of diffusers: after `import segquant.deploy.diffusers`, its own classes read and write quantized models.

`from_pretrained` of a model or a whole pipeline reads what `save_quantized` or `save_pretrained` wrote, bit for bit;
`quantization_config=SegQuantConfig(…)`, or a PipelineQuantizationConfig of it, quantizes a float model on load.
"""

from __future__ import annotations

try:
    import diffusers as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "segquant.deploy.diffusers is a plug-in of diffusers, which is not installed here; run pip install "
        "'diffusers>=0.42' accelerate"
    ) from error

from segquant.deploy.diffusers.calibration import load_calibration, save_calibration
from segquant.deploy.diffusers.config import SegQuantConfig
from segquant.deploy.diffusers.register import register

register()

__all__ = ["SegQuantConfig", "load_calibration", "save_calibration"]
