"""What sampling stages depend on and are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.runtime import provenance
from segquant_bench.pipelines.runtime.meaning import code_digest
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared.own import model_code

if TYPE_CHECKING:
    from segquant_bench.pipelines.sampling.generate import PromptInputs

STREAMS = {"calibration": 1, "held_out": 2}
"""By split: the number that keeps its latents apart; evaluation's is 0, see `sampling.generate.prompt_seed`."""
SAMPLING_CODE = (
    "pipelines.loading", "pipelines.sampling.clock", "pipelines.sampling.draws", "pipelines.sampling.generate",
)  # fmt: skip
"""What turns prompts into calls of the denoiser."""
CONTROL_CODE = ("pipelines.data.canny", "pipelines.data.control", "pipelines.data.pictures")
QUANTIZING_CODE = (
    "segquant.auto", "segquant.calibrators", "segquant.errors", "segquant.graph", "segquant.keep", "segquant.kernels",
    "segquant.layers", "segquant.measure", "segquant.method", "segquant.modules", "segquant.numerics",
    "segquant.observers", "segquant.optimizers", "segquant.quantize", "segquant.ranges", "segquant.reconstruct",
    "segquant.registry", "segquant.serialize", "segquant.solve", "segquant.transforms",
)  # fmt: skip
"""What makes a quantized model of a float one, and measures its errors."""


def quantizes_denoiser(config: RunConfig) -> bool:
    return config.quantizes_denoiser


def sampling_depends(run: Run) -> dict[str, Any]:
    """What pictures depend on besides prompts and denoiser; `embeddings` changes rounding."""
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
    found = sampling_depends(run)
    del found["seed"], found["batch_size"]
    return found


def control_depends(run: Run, *splits: str) -> dict[str, Any]:
    """What control pictures add; may be empty."""
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


def prompts_depends(run: Run) -> dict[str, Any]:
    return {
        "prompts": {split: list(getattr(run.dataset, split)) for split in STREAMS},
        "streams": dict(STREAMS),
    }


def prompt_inputs(run: Run, split: str) -> PromptInputs | None:
    """Further arguments of the call for the prompts of a split."""
    # put off: it loads scipy's image filters, which finished runs do without
    from segquant_bench.pipelines.data.control import ControlPictures, control_argument

    argument = control_argument(run.pipeline, run.config.model)
    if argument is None:
        return None
    call = run.config.model.call
    return ControlPictures(run.dataset, split, str(run.config.model.control), (call.width, call.height), argument)
