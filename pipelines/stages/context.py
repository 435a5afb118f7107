"""What the stages of a run share: prompts, pipeline, device, method, and the stages that are finished."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.data.datasets import Dataset, load_dataset
from segquant_bench.pipelines.loading.files import fingerprint, resolve_directory, resolve_part
from segquant_bench.pipelines.loading.models import denoiser_name, resolve_device
from segquant_bench.pipelines.runtime import digests, provenance
from segquant_bench.pipelines.runtime.cache import Stage, run_stage, stage_key

if TYPE_CHECKING:
    import torch

    from segquant import Method
    from segquant_bench.pipelines.peers import Peer

log = logging.getLogger(__name__)

LOADING_MODULES = (
    "loading.models",
    "loading.files",
    "loading.class_prompts",
    "loading.assemble",
    "loading.embeddings",
    "loading.components",
    "loading.blocks",
)


@dataclass
class Context:
    """Everything is made when first asked for, and once."""

    config: RunConfig
    stages: dict[str, Stage] = field(default_factory=dict)

    @cached_property
    def cache(self) -> Path:
        """Root of all stages."""
        return Path(self.config.cache)

    @cached_property
    def dataset(self) -> Dataset:
        """Prompts and real pictures."""
        return load_dataset(self.config.dataset, self.config.calibration)

    @cached_property
    def directory(self) -> Path:
        """The pipeline's directory, checked."""
        return resolve_directory(self.config.model)

    @cached_property
    def device(self) -> str:
        """Where the denoiser runs."""
        return resolve_device(self.config.model.device)

    @cached_property
    def method(self) -> Method | Peer:
        """The quantization method; a precision that it cannot do is refused here, before any work."""
        return build_method(self.config)

    @cached_property
    def pipeline(self) -> Any:
        """The unquantized pipeline."""
        from segquant_bench.pipelines.loading.assemble import assemble

        embeddings = self.embeddings().path if self.config.model.embeddings == "cached" else None
        log.info("loading %s", self.directory)
        return assemble(self.config.model, self.directory, embeddings)

    def embeddings(self) -> Stage:
        """The embeddings of all prompts of the run, of models that have them computed beforehand."""
        model, dataset = self.config.model, self.dataset
        sampling = self._sampling()
        del sampling["seed"], sampling["batch_size"]
        prompts = [*dataset.evaluation, *dataset.calibration, *dataset.held_out]

        def write(folder: Path) -> None:
            from segquant_bench.pipelines.loading.assemble import write_embeddings

            write_embeddings(model, self.directory, prompts, folder)

        return self._stage("embeddings", {**sampling, "prompts": prompts}, write)

    @cached_property
    def denoiser_name(self) -> str:
        """The denoiser's attribute in the pipeline."""
        return denoiser_name(self.pipeline, self.config.model.denoiser)

    @property
    def denoiser(self) -> torch.nn.Module:
        """The unquantized denoiser."""
        return self.pipeline.components[self.denoiser_name]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model's files, parts that lie elsewhere included."""
        found = fingerprint(self.directory)
        parts = {name: fingerprint(resolve_part(name, part)) for name, part in self.config.model.parts.items()}
        return stage_key("model", {"pipeline": found, "parts": parts}) if parts else found

    def _sampling(self) -> dict[str, Any]:
        """What every picture depends on besides prompts and denoiser."""
        model, versions = self.config.model, provenance.versions()
        other = {
            "pipeline": model.pipeline,
            "scheduler": model.scheduler,
            "scheduler_settings": model.scheduler_settings,
            "embeddings": None if model.embeddings == "live" else model.embeddings,
        }
        return {
            **{key: value for key, value in other.items() if value},
            "loading": digests.modules_digest(*LOADING_MODULES),
            "model": self.fingerprint,
            "dtype": model.dtype,
            "denoiser": model.denoiser,
            "device": self.device.partition(":")[0],
            "call": model.call.arguments(),
            "batch_size": model.batch_size,
            "seed": self.config.seed,
            "versions": {name: versions[name] for name in ("torch", "diffusers", "transformers")},
        }

    def _stage(self, name: str, depends: dict[str, Any], compute: Any) -> Stage:
        if name not in self.stages:
            self.stages[name] = run_stage(name, self.cache, depends, compute)
        return self.stages[name]
