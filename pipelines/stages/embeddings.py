"""The stage of embeddings computed beforehand (`model.embeddings=cached`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.inputs import text_depends


def is_cached(config: RunConfig) -> bool:
    return config.model.embeddings == "cached"


def _prompts(run: Run) -> list[str]:
    dataset = run.dataset
    return [*dataset.evaluation, *dataset.calibration, *dataset.held_out]


def _depends(run: Run) -> dict[str, Any]:
    return {**text_depends(run), "prompts": _prompts(run)}


def _compute(run: Run, folder: Path) -> None:
    # put off: it loads accelerate, which finished runs do without
    from segquant_bench.pipelines.loading.assemble import write_embeddings

    write_embeddings(run.config.model, run.directory, _prompts(run), folder)


EMBEDDINGS = Stage(
    "embeddings", _compute, code=("pipelines.loading",), depends=_depends, when=is_cached, asked=False
)  # fmt: skip
"""The embeddings of all prompts of the run; asked for by `Run.pipeline`."""
