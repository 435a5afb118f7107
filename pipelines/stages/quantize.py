"""The stage of the quantized denoiser."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from segquant.auto.sensitivity import Combine
from segquant.files import write_json
from segquant.keep import Keeper
from segquant.method.spec import Method
from segquant.quantize.outcome import Outcome
from segquant_bench.pipelines.peers import Peer
from segquant_bench.pipelines.runtime.meaning import code_digest
from segquant_bench.pipelines.runtime.own_code import TARGET
from segquant_bench.pipelines.runtime.unfinished import PIECES
from segquant_bench.pipelines.sampling.guided import guidance_weights, weighted
from segquant_bench.pipelines.sampling.samples import load_samples
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.inputs import QUANTIZING_CODE, prompt_inputs, quantizes_denoiser
from segquant_bench.pipelines.stages.shared.own import method_code
from segquant_bench.pipelines.stages.shared.quantized import (
    check_same,
    denoiser_errors,
    load_model,
    quantize_copy,
    save_denoiser,
)
from segquant_bench.pipelines.stages.shared.segments import FILE as SEGMENTS
from segquant_bench.pipelines.stages.shared.segments import calibration_batches, read_segments, wants_graph

log = logging.getLogger(__name__)
ERRORS = "errors.json"


def _depends(run: Run) -> dict[str, Any]:
    # Without `model.offload`, which changes no numbers.
    return {
        "method": run.method.to_dict(),
        **method_code(run.config.quantizer[TARGET], run.method),
        "batch_size": run.config.calibration.batch_size,
        "peers": code_digest("pipelines.peers") if isinstance(run.method, Peer) else None,
    }


def _compute(run: Run, folder: Path) -> None:
    keep = Keeper(folder / PIECES)
    quantized, outcome = _make(run, keep)
    save_denoiser(quantized, outcome, run.method, folder)
    held_out = load_samples(run.folder("calibrate") / "held_out")
    size = run.config.calibration.batch_size
    is_peer = isinstance(run.method, Peer)  # another tool may make another model when it begins again
    errors = denoiser_errors(run.denoiser, quantized, run.method, held_out, size, run.device, None if is_peer else keep)
    write_json(folder / ERRORS, errors)
    if is_peer:
        run.peer_denoiser = quantized


def _make(run: Run, keep: Keeper | None = None) -> tuple[nn.Module, Outcome | None]:
    batches, segments = calibration_batches(run), read_segments(run.folder("graph") / SEGMENTS)
    if run.config.model.offload == "blocks":
        # put off: it loads accelerate, which other runs do without
        from segquant_bench.pipelines.loading.blocks import quantize_from_disk

        if not isinstance(run.method, Method):
            raise TypeError(f"{run.method.name} cannot quantize from disk")  # refused with the configuration
        wanted = segments if wants_graph(run.method) else None
        model, outcome = quantize_from_disk(
            run.config.model, run.directory, run.method, batches, run.config.name, wanted, keep
        )
        return model.to(run.device), outcome
    return quantize_copy(run.denoiser, run.method, batches, segments, run.config.name, keep, _combine(run))


def _combine(run: Run) -> Combine | None:
    """What the pipeline makes of the denoiser's output, for methods that weigh layers against each other."""
    if not isinstance(run.method, Method) or run.method.budget is None:
        return None
    weights = guidance_weights(
        run.pipeline, run.denoiser, list(run.dataset.calibration), run.config.model.call.arguments(),
        seed=run.config.calibration.seed, inputs=prompt_inputs(run, "calibration"),
    )  # fmt: skip
    log.info(
        "layers count by %s",
        "the denoiser's output: it has a row a prompt, or no weighted sum of rows goes to the scheduler"
        if weights is None
        else f"what the scheduler gets, rows times {', '.join(f'{weight:.3g}' for weight in weights)}",
    )
    return None if weights is None else weighted(weights)


QUANTIZE = Stage(
    "quantize", _compute, needs=("calibrate", "graph"),
    code=(
        "pipelines.stages.shared.quantized", *QUANTIZING_CODE, "pipelines.sampling.samples",
        "pipelines.sampling.guided", "pipelines.sampling.first_step",
    ),
    depends=_depends, when=quantizes_denoiser, keeps=(PIECES,),
)  # fmt: skip
"""denoiser/: the quantized denoiser (peer.json: what another tool made); plan.json of `auto`; errors.json."""


def quantized_denoiser(run: Run) -> nn.Module:
    """The quantized denoiser on the pipeline's device, or the float one; another tool's is kept in memory."""
    if not run.has(QUANTIZE.name):
        return run.denoiser
    folder = run.folder(QUANTIZE.name)
    if isinstance(run.method, Peer):
        if run.peer_denoiser is None:
            run.peer_denoiser = check_same(_make(run)[0], folder)
        return run.peer_denoiser
    if run.config.model.offload == "blocks":
        # put off: it loads accelerate, which other runs do without
        from segquant_bench.pipelines.loading.blocks import load_offloaded

        return load_offloaded(run.config.model, run.directory, folder / "denoiser").to(run.device)
    return load_model(folder / "denoiser").to(run.device).eval()
