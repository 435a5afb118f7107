"""The stage of the quantized pipeline's pictures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from segquant.files import write_json
from segquant_bench.pipelines.config.auto_engine import engine_name
from segquant_bench.pipelines.config.engine import AUTO
from segquant_bench.pipelines.config.schema import REFERENCE, RunConfig
from segquant_bench.pipelines.correction.correction import load_correction
from segquant_bench.pipelines.correction.sampling import corrected
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.pipelines.stages.components.quantize import quantized_components
from segquant_bench.pipelines.stages.quantize import quantized_denoiser
from segquant_bench.pipelines.stages.reference import IMAGES, pictures_depends, sample_pictures
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.engine import Placed, compiling, engine_depends, place
from segquant_bench.pipelines.stages.shared.inputs import SAMPLING_CODE
from segquant_bench.pipelines.stages.shared.own import backend_code
from segquant_bench.pipelines.stages.shared.quantized import in_place
from segquant_bench.pipelines.stages.shared.together import together

log = logging.getLogger(__name__)

BACKENDS = "backends.json"
ENGINE = "engine.json"


def _share(run: Run, folder: Path, share: Share) -> None:
    placed, components = _placed(run, folder)
    _sample(run, placed, components, folder, share)


def _compute(run: Run, folder: Path) -> None:
    placed, components = _placed(run, folder)
    counts = Counter(placed.layers.values())
    if run.config.run.name == AUTO and set(counts) - {REFERENCE}:
        log.info("run=auto: %s", ", ".join(f"{count} layers by {name}" for name, count in counts.items()))
    write_json(folder / BACKENDS, counts)
    write_json(folder / ENGINE, {**placed.about, "layers": placed.layers, "reasons": placed.reasons})
    with together(run, GENERATE.name, folder) as share:
        if share is not None:
            _sample(run, placed, components, folder, share)
    _sample(run, placed, components, folder)


def _placed(run: Run, folder: Path) -> tuple[Placed, dict[str, nn.Module]]:
    components = quantized_components(run)
    return place(run, quantized_denoiser(run), components, folder), components


def _sample(
    run: Run, placed: Placed, components: Mapping[str, nn.Module], folder: Path, share: Share | None = None
) -> None:
    correction = load_correction(run.folder("correct")) if run.has("correct") else None
    parts = {run.denoiser_name: placed.module, **components}
    with in_place(run.pipeline, parts), corrected(run.pipeline.scheduler, correction), compiling(run.config.run.name):
        sample_pictures(run, placed.module, folder / IMAGES, run.config.name, share)


def _depends(run: Run) -> dict[str, Any]:
    return {**pictures_depends(run), **backend_code(run.config.backend), **engine_depends(run)}


def _differs(config: RunConfig) -> bool:
    return not config.is_float or engine_name(config) != REFERENCE


GENERATE = Stage(
    "generate", _compute, needs=("quantize", "components", "correct"),
    code=(
        *SAMPLING_CODE, "pipelines.correction", "pipelines.stages.reference", "pipelines.stages.shared.engine",
        "pipelines.stages.shared.quantized", "pipelines.stages.shared.segments", "pipelines.sampling.first_step",
    ),
    depends=_depends, when=_differs, keeps=(IMAGES,), share=_share,
)  # fmt: skip
"""images/: the pictures of the quantized model, by the run's engine; backends.json: how many layers each backend ran;
engine.json: what ran each layer; exported/: the file of ort and openvino.

A run that quantizes nothing, by plain torch, has the pictures of `reference`.
"""


def pictures_folder(run: Run) -> Path:
    return run.folder(GENERATE.name if run.has(GENERATE.name) else "reference") / IMAGES
