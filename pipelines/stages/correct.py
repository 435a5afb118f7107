"""The stage of the correction of predictions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from segquant.keep import Keeper
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.correction.correction import save_correction
from segquant_bench.pipelines.correction.fit import fit_correction
from segquant_bench.pipelines.runtime.unfinished import PIECES
from segquant_bench.pipelines.stages.components.quantize import quantized_components
from segquant_bench.pipelines.stages.quantize import quantized_denoiser
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.inputs import (
    SAMPLING_CODE,
    STREAMS,
    control_depends,
    prompt_inputs,
    sampling_depends,
)
from segquant_bench.pipelines.stages.shared.quantized import in_place

SPLIT = "calibration"


def _prompts(run: Run) -> list[str]:
    return list(run.dataset.calibration[: run.config.correction.prompts])


def _depends(run: Run) -> dict[str, Any]:
    return {
        "sampling": sampling_depends(run),
        "correction": asdict(run.config.correction),
        "prompts": _prompts(run),
        "seed": run.config.calibration.seed,
        "stream": STREAMS[SPLIT],
        **control_depends(run, SPLIT),
    }


def _compute(run: Run, folder: Path) -> None:
    model = run.config.model
    with in_place(run.pipeline, quantized_components(run)):
        correction = fit_correction(
            run.pipeline, run.denoiser_name, quantized_denoiser(run), _prompts(run), model.call.arguments(),
            run.config.correction, seed=run.config.calibration.seed, stream=STREAMS[SPLIT],
            batch_size=model.batch_size, inputs=prompt_inputs(run, SPLIT), keep=Keeper(folder / PIECES),
        )  # fmt: skip
    save_correction(correction, folder)


def _is_corrected(config: RunConfig) -> bool:
    return config.is_corrected


CORRECT = Stage(
    "correct", _compute, needs=("quantize", "components"),
    code=(*SAMPLING_CODE, "pipelines.sampling", "pipelines.correction", "segquant.keep"),
    depends=_depends, when=_is_corrected, keeps=(PIECES,),
)  # fmt: skip
"""correction.safetensors and .json: what the quantized denoiser's predictions are corrected by.

It is fitted with the components that sampling will have: both denoisers are given the same embeddings.
"""
