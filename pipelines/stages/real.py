"""The stage of the real pictures, shared by models of one picture size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.data.pictures import write_pictures
from segquant_bench.pipelines.runtime.provenance import versions_of
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.judgement import needs_real


def judges_real(config: RunConfig) -> bool:
    return bool(needs_real(config.metric))


def picture_size(config: RunConfig) -> tuple[int, int]:
    """Width and height."""
    return config.model.call.width, config.model.call.height


def _depends(run: Run) -> dict[str, Any]:
    fit = run.dataset.fit
    return {
        "pictures": run.dataset.digest,
        "fit": fit,
        "size": None if fit is None else list(picture_size(run.config)),
        "versions": versions_of(("pillow", "numpy")),
    }


def _compute(run: Run, folder: Path) -> None:
    write_pictures(run.dataset.real, folder / "images", picture_size(run.config), run.dataset.fit)


REAL = Stage("real", _compute, code=("pipelines.data.pictures",), depends=_depends, when=judges_real)
"""images/: the real pictures as PNGs, at the generated ones' size where the data set fits them."""
