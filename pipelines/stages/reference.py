"""The stage of the unquantized pipeline's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from segquant.files import write_json
from segquant.modules.tensors import model_weight_bytes
from segquant_bench.pipelines.sampling.generate import generate_images
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.inputs import (
    SAMPLING_CODE,
    control_depends,
    prompt_inputs,
    sampling_depends,
)
from segquant_bench.pipelines.stages.shared.together import together

SIZE = "denoiser.json"
IMAGES = "images"


def pictures_depends(run: Run) -> dict[str, Any]:
    """What evaluation pictures depend on besides the denoiser."""
    return {
        "sampling": sampling_depends(run),
        "prompts": list(run.dataset.evaluation),
        **control_depends(run, "evaluation"),
    }


def sample_pictures(run: Run, denoiser: nn.Module, folder: Path, label: str, share: Share | None = None) -> None:
    """Sample the evaluation prompts, or a share of them, with the pipeline's `denoiser`."""
    model = run.config.model
    generate_images(
        run.pipeline, denoiser, run.dataset.evaluation, folder, model.call.arguments(),
        seed=run.config.seed, batch_size=model.batch_size, label=label, inputs=prompt_inputs(run, "evaluation"),
        share=share,
    )  # fmt: skip


def _share(run: Run, folder: Path, share: Share) -> None:
    sample_pictures(run, run.denoiser, folder / IMAGES, REFERENCE.name, share)


def _compute(run: Run, folder: Path) -> None:
    with together(run, REFERENCE.name, folder) as share:
        if share is not None:
            _share(run, folder, share)
    sample_pictures(run, run.denoiser, folder / IMAGES, REFERENCE.name)
    write_json(folder / SIZE, {"weight_bytes": model_weight_bytes(run.denoiser)})


REFERENCE = Stage(
    "reference", _compute, code=(*SAMPLING_CODE, "segquant.modules.tensors"), depends=pictures_depends,
    keeps=(IMAGES,), share=_share,
)  # fmt: skip
"""images/: the unquantized model's pictures; denoiser.json: its size in bytes."""
