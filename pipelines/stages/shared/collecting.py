from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segquant.keep import Keeper
from segquant_bench.pipelines.config.precision import register_precision
from segquant_bench.pipelines.runtime.meaning import code_digest
from segquant_bench.pipelines.sampling import collect, timesteps
from segquant_bench.pipelines.sampling.samples import Sample
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared.inputs import (
    QUANTIZING_CODE,
    STREAMS,
    control_depends,
    prompt_inputs,
    prompts_depends,
    sampling_depends,
)

COLLECTING_CODE = ("pipelines.loading", "pipelines.sampling", "pipelines.stages.shared.collecting", "segquant.keep")
"""What samples, and keeps what modules are called with."""


def steps_depends(run: Run) -> dict[str, Any]:
    calibration = run.config.calibration
    weighed = calibration.timesteps == "loss"  # by a quantized model
    scheme = register_precision(run.config.precision) if weighed else None
    total = run.config.model.call.num_inference_steps
    return {
        "steps_per_prompt": calibration.steps_per_prompt,
        "seed": calibration.seed,
        "timesteps": timesteps.depends(calibration, run.config.precision.name, total),
        "scheme": None if scheme is None else scheme.to_dict(),
        "quantizing": code_digest(*QUANTIZING_CODE, "segquant.presets") if weighed else None,
    }


def collecting_depends(run: Run) -> dict[str, Any]:
    return {
        "sampling": sampling_depends(run),
        **prompts_depends(run),
        **steps_depends(run),
        **control_depends(run, *STREAMS),
    }


def step_weights(run: Run, keep: Keeper) -> np.ndarray | None:
    """Float64 [steps]; None where all are alike. `keep` takes the pilot's inputs, if there is one."""
    model = run.config.model
    return collect.step_weights(
        run.config.calibration, run.pipeline, run.denoiser, run.dataset.calibration, model.call.arguments(),
        stream=STREAMS["calibration"], batch_size=model.batch_size, precision=run.config.precision.name,
        device=run.device, inputs=prompt_inputs(run, "calibration"), keep=keep.within("pilot"),
    )  # fmt: skip


def collected(
    run: Run,
    split: str,
    weights: np.ndarray | None,
    keep: Keeper,
    component: str | None = None,
    share: Share | None = None,
) -> Sequence[Sample]:
    """Inputs of the denoiser or a ControlNet; held-out prompts have uniform steps. `keep` takes finished batches."""
    model, calibration = run.config.model, run.config.calibration
    return collect.collect(
        run.pipeline, run.denoiser, getattr(run.dataset, split), model.call.arguments(),
        steps_per_prompt=calibration.steps_per_prompt, seed=calibration.seed, stream=STREAMS[split],
        batch_size=model.batch_size, label=f"calibrate ({component or 'denoiser'}, {split})",
        weights=weights if split == "calibration" else None, inputs=prompt_inputs(run, split),
        module=None if component is None else run.pipeline.components[component],
        keep=keep.within(split).within(component or ""), share=share,
    )  # fmt: skip
