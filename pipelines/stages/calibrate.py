"""The stage of calibration and held-out inputs of the denoiser."""

from __future__ import annotations

from pathlib import Path

from segquant.files import write_json
from segquant.keep import Keeper
from segquant_bench.pipelines.runtime.unfinished import PIECES
from segquant_bench.pipelines.sampling import timesteps
from segquant_bench.pipelines.sampling.samples import save_samples
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.collecting import (
    COLLECTING_CODE,
    collected,
    collecting_depends,
    step_weights,
)
from segquant_bench.pipelines.stages.shared.inputs import STREAMS, quantizes_denoiser
from segquant_bench.pipelines.stages.shared.together import together


def _share(run: Run, folder: Path, share: Share) -> None:
    keep = Keeper(folder / PIECES)
    weights = step_weights(run, keep)  # the pilot's inputs lie there
    for split in STREAMS:
        collected(run, split, weights, keep, share=share)


def _compute(run: Run, folder: Path) -> None:
    keep = Keeper(folder / PIECES)
    weights = step_weights(run, keep)
    with together(run, CALIBRATE.name, folder) as share:
        if share is not None:
            _share(run, folder, share)
    for split in STREAMS:
        save_samples(collected(run, split, weights, keep), folder / split)
    steps = timesteps.describe(run.config.calibration, weights, run.config.model.call.num_inference_steps)
    write_json(folder / "steps.json", steps)


CALIBRATE = Stage(
    "calibrate", _compute, code=COLLECTING_CODE, depends=collecting_depends, when=quantizes_denoiser,
    keeps=(PIECES,), share=_share,
)  # fmt: skip
"""calibration/ and held_out/: the denoiser's inputs; steps.json: how likely each step was to be drawn."""
