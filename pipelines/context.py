"""What the stages of a run share: prompts, pipeline, device, method, and the stages that are finished."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import measure
from pipelines.cache import Stage, run_stage
from pipelines.config import RunConfig
from pipelines.datasets import Dataset, load_dataset
from pipelines.method import build_method
from pipelines.models import denoiser_name, fingerprint, load_pipeline, resolve_device, resolve_directory

if TYPE_CHECKING:
    import torch

    from pipelines.peers import Peer
    from segquant import Method

log = logging.getLogger(__name__)


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
        log.info("loading %s", self.directory)
        return load_pipeline(self.config.model, self.directory)

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
        """Hash of the model's files."""
        return fingerprint(self.directory)

    def _sampling(self) -> dict[str, Any]:
        """What every picture depends on besides prompts and denoiser."""
        model, versions = self.config.model, measure.versions()
        return {
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
