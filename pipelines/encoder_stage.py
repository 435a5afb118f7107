"""The stage of quantized text encoders, of runs that ask for them: `quantize=[denoiser,text_encoder,…]`.

It stands beside the denoiser's, which therefore is the same with and without it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import measure
from pipelines.cache import Stage, write_json
from pipelines.context import Context
from pipelines.models import read_index

if TYPE_CHECKING:
    import torch

    from segquant import Method

ENCODER_MODULES = ("encoders", "generate", "models", "samples")
RECORD = "encoders.json"
STREAMS = {"calibration": 1, "held_out": 2}


class EncoderStage(Context):
    """Text encoders, quantized by the run's method at the run's precision."""

    @cached_property
    def encoder_methods(self) -> dict[str, Method]:
        """The method of every text encoder that the run quantizes; bad names are refused here, before any work."""
        if not self.config.text_encoders:
            return {}
        from pipelines.encoders import check_encoders, encoder_method

        check_encoders(read_index(self.directory), self.config.text_encoders)
        return {name: encoder_method(self.config, name) for name in self.config.text_encoders}

    def encoders(self) -> Stage:
        """NAME/: each quantized text encoder; encoders.json: errors, and bytes of every component."""
        sampling = self._sampling()
        del sampling["seed"], sampling["batch_size"]  # text is encoded before, one prompt at a time
        depends = {
            **sampling,
            "calibration": list(self.dataset.calibration),
            "held_out": list(self.dataset.held_out),
            "methods": {name: method.to_dict() for name, method in self.encoder_methods.items()},
            "calibration_batch_size": self.config.calibration.batch_size,
            "code": [measure.source_digest("segquant"), measure.modules_digest(*ENCODER_MODULES)],
        }
        return self._stage("encoders", depends, self._encoders)

    def _encoders(self, folder: Path) -> None:
        import segquant
        from pipelines.encoders import component_bytes, encoder_errors, encoder_inputs, quantize_encoder
        from pipelines.samples import Batches

        size, call = self.config.calibration.batch_size, self.config.model.call.arguments()
        inputs = {
            part: encoder_inputs(
                self.pipeline, self.denoiser, list(self.encoder_methods), getattr(self.dataset, part), call,
                seed=self.config.calibration.seed, stream=stream,
            )
            for part, stream in STREAMS.items()
        }  # fmt: skip
        errors = {}
        for name, method in self.encoder_methods.items():
            encoder = self.pipeline.components[name]
            batches = Batches(inputs["calibration"][name], size, self.device)
            quantized = quantize_encoder(name, encoder, method, batches)
            segquant.save_quantized(quantized, folder / name)
            errors[name] = encoder_errors(name, encoder, quantized, inputs["held_out"][name], size, self.device)
        record = {"encoders": errors, "weight_bytes": component_bytes(self.pipeline), "denoiser": self.denoiser_name}
        write_json(folder / RECORD, record)

    def quantized_encoders(self) -> dict[str, torch.nn.Module]:
        """The quantized text encoders, read from their stage; none where the run quantizes none."""
        if not self.encoder_methods:
            return {}
        from pipelines.encoders import load_encoder

        folder = self.encoders().path
        return {name: load_encoder(folder / name, self.pipeline.components[name]) for name in self.encoder_methods}
