"""What stages that sample depend on, and what they are given: prompts, latents' streams, control pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from segquant_bench.pipelines.config.precision import register_precision
from segquant_bench.pipelines.runtime import provenance
from segquant_bench.pipelines.runtime.meaning import code_digest
from segquant_bench.pipelines.sampling import collect, timesteps
from segquant_bench.pipelines.sampling.generate import PromptInputs
from segquant_bench.pipelines.sampling.samples import Sample
from segquant_bench.pipelines.stages.own import model_code
from segquant_bench.pipelines.stages.run import Run

STREAMS = {"calibration": 1, "held_out": 2}
"""By split: the number that keeps its latents apart; evaluation's is 0, see `sampling.generate.prompt_seed`."""
SAMPLING_CODE = ("pipelines.loading", "pipelines.sampling.generate")
"""What turns prompts into calls of the denoiser."""
COLLECTING_CODE = ("pipelines.loading", "pipelines.sampling")
"""What keeps the inputs of these calls."""
CONTROL_CODE = ("pipelines.data.canny", "pipelines.data.control", "pipelines.data.pictures")
QUANTIZING_CODE = (
    "segquant.auto", "segquant.calibrators", "segquant.errors", "segquant.graph", "segquant.kernels",
    "segquant.layers", "segquant.measure", "segquant.method", "segquant.modules", "segquant.numerics",
    "segquant.observers", "segquant.optimizers", "segquant.quantize", "segquant.ranges", "segquant.reconstruct",
    "segquant.registry", "segquant.serialize", "segquant.solve", "segquant.transforms",
)  # fmt: skip
"""What makes a quantized model of a float one, and measures its errors."""


def sampling_depends(run: Run) -> dict[str, Any]:
    """What every sampled picture depends on besides prompts and denoiser.

    `model.offload` is left out: it moves weights and changes no number. The embeddings of prompts are the same
    whether they are computed live or beforehand, but for a dtype's rounding in another batch, so that counts.
    """
    model = run.config.model
    other = {
        "pipeline": model.pipeline,
        "scheduler": model.scheduler,
        "scheduler_settings": model.scheduler_settings,
        "embeddings": None if model.embeddings == "live" else model.embeddings,
    }
    return {
        **{key: value for key, value in other.items() if value},
        **model_code(model),
        "model": run.fingerprint,
        "dtype": model.dtype,
        "denoiser": model.denoiser,
        "device": run.device.partition(":")[0],
        "call": model.call.arguments(),
        "batch_size": model.batch_size,
        "seed": run.config.seed,
        "versions": provenance.versions_of(("torch", "diffusers", "transformers")),
    }


def text_depends(run: Run) -> dict[str, Any]:
    """What encoded text depends on: one prompt at a time, before any latents."""
    found = sampling_depends(run)
    del found["seed"], found["batch_size"]
    return found


def control_depends(run: Run, *splits: str) -> dict[str, Any]:
    """What control pictures add to what a stage depends on; empty for models without."""
    kind = run.config.model.control
    if kind is None:
        return {}
    record = {
        "kind": kind,
        "fit": run.dataset.fit,
        "pictures": {split: run.dataset.pictures_digest(split) for split in splits},
        "versions": provenance.versions_of(("numpy", "pillow", "scipy")),
        "code": code_digest(*CONTROL_CODE),
    }
    return {"control": record}


def steps_depends(run: Run) -> dict[str, Any]:
    """Which steps calibration and held-out inputs are kept at."""
    calibration = run.config.calibration
    weighed = calibration.timesteps == "loss"  # by a quantized model
    scheme = register_precision(run.config.precision) if weighed else None
    total = run.config.model.call.num_inference_steps
    return {
        "steps_per_prompt": calibration.steps_per_prompt,
        "seed": calibration.seed,
        "timesteps": timesteps.depends(calibration, run.config.precision.name, total),
        "scheme": None if scheme is None else asdict(scheme),
        "quantizing": code_digest(*QUANTIZING_CODE, "segquant.presets") if weighed else None,
    }


def collecting_depends(run: Run) -> dict[str, Any]:
    """What inputs that are kept while sampling depend on."""
    return {
        "sampling": sampling_depends(run),
        **prompts_depends(run),
        **steps_depends(run),
        **control_depends(run, *STREAMS),
    }


def prompts_depends(run: Run) -> dict[str, Any]:
    """Prompts and latents' streams of calibration and held-out inputs."""
    return {
        "prompts": {split: list(getattr(run.dataset, split)) for split in STREAMS},
        "streams": dict(STREAMS),
    }


def prompt_inputs(run: Run, split: str) -> PromptInputs | None:
    """Further arguments of the pipeline's call for the prompts of "evaluation", "calibration" or "held_out"."""
    # put off: it loads scipy's image filters, which finished runs do without
    from segquant_bench.pipelines.data.control import ControlPictures, control_argument

    argument = control_argument(run.pipeline, run.config.model)
    if argument is None:
        return None
    call = run.config.model.call
    return ControlPictures(run.dataset, split, str(run.config.model.control), (call.width, call.height), argument)


def step_weights(run: Run) -> np.ndarray | None:
    """How likely each step is to be drawn for calibration: float64 [steps], None where all are alike."""
    model = run.config.model
    return collect.step_weights(
        run.config.calibration, run.pipeline, run.denoiser, run.dataset.calibration, model.call.arguments(),
        stream=STREAMS["calibration"], batch_size=model.batch_size, precision=run.config.precision.name,
        device=run.device, inputs=prompt_inputs(run, "calibration"),
    )  # fmt: skip


def collected(run: Run, split: str, weights: np.ndarray | None, component: str | None = None) -> Sequence[Sample]:
    """Inputs of the denoiser, or of another component that runs at every step, for the prompts of a split.

    Held-out prompts always have uniform steps, so that errors compare between calibrations.
    """
    model, calibration = run.config.model, run.config.calibration
    return collect.collect(
        run.pipeline, run.denoiser, getattr(run.dataset, split), model.call.arguments(),
        steps_per_prompt=calibration.steps_per_prompt, seed=calibration.seed, stream=STREAMS[split],
        batch_size=model.batch_size, label=f"calibrate ({component or 'denoiser'}, {split})",
        weights=weights if split == "calibration" else None, inputs=prompt_inputs(run, split),
        module=None if component is None else run.pipeline.components[component],
    )  # fmt: skip
