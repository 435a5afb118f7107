"""The stage of the denoiser's cuts."""

from __future__ import annotations

from pathlib import Path

from segquant.graph.find import find_segments
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.inputs import quantizes_denoiser
from segquant_bench.pipelines.stages.shared.segments import (
    FILE,
    GRAPH_CODE,
    calibration_batches,
    calibration_depends,
    write_segments,
)


def _compute(run: Run, folder: Path) -> None:
    write_segments(folder / FILE, find_segments(run.denoiser, (), next(iter(calibration_batches(run)))))


GRAPH = Stage(
    "graph", _compute, needs=("calibrate",), code=GRAPH_CODE, depends=calibration_depends, when=quantizes_denoiser
)  # fmt: skip
"""segments.json: cuts and activations by layer of the denoiser."""
