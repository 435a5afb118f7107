"""The stage of quantized components beside the denoiser: `quantize=[denoiser,text_encoder,controlnet,…]`.

It stands beside the denoiser's, which therefore is the same with and without it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from segquant_bench.pipelines.loading.models import read_index
from segquant_bench.pipelines.runtime import digests
from segquant_bench.pipelines.runtime.cache import Stage, write_json
from segquant_bench.pipelines.stages.calibrate import STREAMS, CalibrateStage

if TYPE_CHECKING:
    import torch

    from segquant import Method
    from segquant_bench.pipelines.sampling.samples import Sample

ENCODER_MODULES = ("stages.encoders", "sampling.generate", "loading.models", "sampling.samples")
RECORD = "encoders.json"


class EncoderStage(CalibrateStage):
    """Text encoders and ControlNets, quantized by the run's method at the run's precision."""

    @cached_property
    def encoder_methods(self) -> dict[str, Method]:
        """The method of every component but the denoiser that the run quantizes; bad names are refused here."""
        names = self.config.other_components
        if not names:
            return {}
        from segquant_bench.pipelines.stages.encoders import check_encoders, encoder_method

        parts = {name: [part.kind, part.kind] for name, part in self.config.model.parts.items()}
        check_encoders({**read_index(self.directory), **parts}, names)
        return {name: encoder_method(self.config, name) for name in names}

    def encoders(self) -> Stage:
        """NAME/: each quantized component; encoders.json: errors, and bytes of every component."""
        sampling = self._sampling()
        if self.config.other_components == self.config.text_encoders:
            del sampling["seed"], sampling["batch_size"]  # text is encoded before, one prompt at a time
        else:
            sampling["calibrate"] = self.calibrate_depends()
        depends = {
            **sampling,
            "calibration": list(self.dataset.calibration),
            "held_out": list(self.dataset.held_out),
            "methods": {name: method.to_dict() for name, method in self.encoder_methods.items()},
            "calibration_batch_size": self.config.calibration.batch_size,
            **self.control_depends(*STREAMS),
            "code": [digests.source_digest("segquant"), digests.modules_digest(*ENCODER_MODULES)],
        }
        return self._stage("encoders", depends, self._encoders)

    def component_inputs(self, name: str) -> Stage:
        """calibration/ and held_out/: what the pipeline calls a component with that runs at every step."""
        depends = {**self.calibrate_inputs(), "component": name}
        return self._stage(f"calibrate_{name}", depends, lambda folder: self._component_inputs(name, folder))

    def _component_inputs(self, name: str, folder: Path) -> None:
        from segquant_bench.pipelines.sampling.samples import save_samples

        weights = self.step_weights()
        for split in STREAMS:
            save_samples(self.captured(split, weights, name), folder / split)

    def _inputs(self) -> dict[str, dict[str, list[Sample]]]:
        """By split and component: what the pipeline calls it with."""
        from segquant_bench.pipelines.sampling.samples import load_samples
        from segquant_bench.pipelines.stages.encoders import encoder_inputs

        config = self.config
        texts = [name for name in self.encoder_methods if name in config.text_encoders]
        others = {name: self.component_inputs(name).path for name in self.encoder_methods if name not in texts}
        found: dict[str, dict[str, list[Sample]]] = {}
        for split, stream in STREAMS.items():
            found[split] = {name: load_samples(path / split) for name, path in others.items()}
            if texts:
                found[split] |= encoder_inputs(
                    self.pipeline, self.denoiser, texts, getattr(self.dataset, split), config.model.call.arguments(),
                    seed=config.calibration.seed, stream=stream, inputs=self.prompt_inputs(split),
                )  # fmt: skip
        return found

    def _encoders(self, folder: Path) -> None:
        import segquant
        from segquant_bench.pipelines.sampling.samples import Batches
        from segquant_bench.pipelines.stages.encoders import component_bytes, encoder_errors, quantize_encoder

        size, inputs = self.config.calibration.batch_size, self._inputs()
        errors = {}
        for name, method in self.encoder_methods.items():
            encoder = self.pipeline.components[name]
            batches = Batches(inputs["calibration"][name], size, self.device)
            quantized, outcome = quantize_encoder(name, encoder, method, batches)
            segquant.save_quantized(quantized, folder / name, outcome)
            errors[name] = encoder_errors(name, encoder, quantized, inputs["held_out"][name], size, self.device)
        record = {"encoders": errors, "weight_bytes": component_bytes(self.pipeline), "denoiser": self.denoiser_name}
        write_json(folder / RECORD, record)

    def quantized_encoders(self) -> dict[str, torch.nn.Module]:
        """The quantized components but the denoiser, read from their stage; none where the run quantizes none."""
        if not self.encoder_methods:
            return {}
        from segquant_bench.pipelines.stages.encoders import load_encoder

        folder = self.encoders().path
        return {name: load_encoder(folder / name, self.pipeline.components[name]) for name in self.encoder_methods}
