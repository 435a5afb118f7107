"""Entries in diffusers' and transformers' tables."""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.utils import is_transformers_available

from segquant.deploy.diffusers.config import SegQuantConfig
from segquant.deploy.diffusers.pipelines import teach_pipelines
from segquant.deploy.diffusers.quantizer import SegQuantQuantizer
from segquant.deploy.diffusers.save import save_pretrained
from segquant.deploy.diffusers.unread import refuse_unread_weights
from segquant.errors import QuantizationError
from segquant.layers.saving import teach_save_pretrained
from segquant.serialize.manifest import QUANT_METHOD


def register() -> None:
    """Make `quant_method` "segquant" known; again changes nothing."""
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = SegQuantQuantizer
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = SegQuantConfig
    teach_save_pretrained(ModelMixin, save_pretrained)
    teach_pipelines()
    refuse_unread_weights()
    if is_transformers_available():
        # PipelineQuantizationConfig asks that both libraries know a backend, with the same arguments
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as OF_TRANSFORMERS

        OF_TRANSFORMERS[QUANT_METHOD] = NotOfTransformers


class NotOfTransformers(SegQuantConfig):
    """What a pipeline makes for its text encoders unless it is told which components to quantize."""

    def __init__(
        self, method: Any = None, precision: Any = None, calibration: Any = None, saved: Any = None, **rest: Any
    ) -> None:
        raise QuantizationError(
            "segquant quantizes diffusers' models on load, not those of transformers; name them, for example "
            "components_to_quantize=['transformer'] in the PipelineQuantizationConfig"
        )
