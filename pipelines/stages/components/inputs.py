"""The stage of the components' inputs: text encoders once per prompt, a ControlNet at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segquant.keep import Keeper
from segquant_bench.pipelines.runtime.unfinished import PIECES
from segquant_bench.pipelines.sampling.samples import Batches, Sample, load_samples, save_samples
from segquant_bench.pipelines.stages.components.methods import has_components
from segquant_bench.pipelines.stages.components.text_inputs import text_inputs
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.collecting import (
    COLLECTING_CODE,
    collected,
    collecting_depends,
    step_weights,
)
from segquant_bench.pipelines.stages.shared.inputs import (
    STREAMS,
    control_depends,
    prompt_inputs,
    prompts_depends,
    text_depends,
)


def _inputs_depends(run: Run) -> dict[str, Any]:
    names = {"components": sorted(run.config.other_components)}
    if set(run.config.other_components) != set(run.config.text_encoders):
        return {**collecting_depends(run), **names}
    return {"text": text_depends(run), **prompts_depends(run), **control_depends(run, *STREAMS), **names}


def _inputs(run: Run, folder: Path) -> None:
    texts = [name for name in run.config.other_components if name in run.config.text_encoders]
    others = [name for name in run.config.other_components if name not in texts]
    keep = Keeper(folder / PIECES)
    weights = step_weights(run, keep) if others else None
    for split, stream in STREAMS.items():
        found = {name: collected(run, split, weights, keep, name) for name in others}
        if texts:
            found |= text_inputs(
                run.pipeline, run.denoiser, texts, getattr(run.dataset, split), run.config.model.call.arguments(),
                seed=run.config.calibration.seed, stream=stream, inputs=prompt_inputs(run, split),
            )  # fmt: skip
        for name, samples in found.items():
            (folder / name).mkdir(exist_ok=True)
            save_samples(samples, folder / name / split)


COMPONENT_INPUTS = Stage(
    "component_inputs", _inputs, code=(*COLLECTING_CODE, "pipelines.stages.components.text_inputs"),
    depends=_inputs_depends, when=has_components, asked=False, keeps=(PIECES,),
)  # fmt: skip
"""NAME/calibration/ and NAME/held_out/: what the pipeline calls each component with."""


def component_samples(run: Run, name: str, split: str) -> list[Sample]:
    """Inputs for the prompts of "calibration" or "held_out"."""
    return load_samples(run.folder("component_inputs") / name / split)


def component_batches(run: Run, name: str) -> Batches:
    return Batches(component_samples(run, name, "calibration"), run.config.calibration.batch_size, run.device)
