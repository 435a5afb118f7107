"""The stage of the quantized pipeline's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segquant.files import write_json
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.correction.correction import load_correction
from segquant_bench.pipelines.correction.sampling import corrected
from segquant_bench.pipelines.stages.components.quantize import quantized_components
from segquant_bench.pipelines.stages.quantize import quantized_denoiser
from segquant_bench.pipelines.stages.reference import pictures_depends, sample_pictures
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.inputs import SAMPLING_CODE
from segquant_bench.pipelines.stages.shared.own import backend_code
from segquant_bench.pipelines.stages.shared.quantized import in_place, run_by

BACKENDS = "backends.json"


def _compute(run: Run, folder: Path) -> None:
    correction = load_correction(run.folder("correct")) if run.has("correct") else None
    quantized = quantized_denoiser(run)
    parts = {run.denoiser_name: quantized, **quantized_components(run)}
    write_json(folder / BACKENDS, run_by(run.config.backend, *parts.values()))
    with in_place(run.pipeline, parts), corrected(run.pipeline.scheduler, correction):
        sample_pictures(run, quantized, folder / "images", run.config.name)


def _depends(run: Run) -> dict[str, Any]:
    return {**pictures_depends(run), **backend_code(run.config.backend)}


def _is_quantized(config: RunConfig) -> bool:
    return not config.is_float


GENERATE = Stage(
    "generate", _compute, needs=("quantize", "components", "correct"),
    code=(*SAMPLING_CODE, "pipelines.correction", "pipelines.stages.reference"),
    depends=_depends, when=_is_quantized,
)  # fmt: skip
"""images/: the quantized model's pictures; backends.json: how many layers each backend ran.

A run that quantizes nothing has the pictures of `reference`.
"""


def pictures_folder(run: Run) -> Path:
    return run.folder(GENERATE.name if run.has(GENERATE.name) else "reference") / "images"
