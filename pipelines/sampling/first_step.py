"""What a pipeline gives its denoiser in the first step, without sampling any further."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from segquant_bench.pipelines.runtime.pipeline_call import Stopped
from segquant_bench.pipelines.sampling.generate import PromptInputs, bound_inputs, run_batches


class Seen(Stopped):
    """The step is over."""


def first_step(
    pipeline: Any,
    denoiser: torch.nn.Module,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    *,
    seed: int,
    batch_size: int,
    inputs: PromptInputs | None = None,
) -> list[dict[str, Any]]:
    """Arguments by name of the denoiser's calls in the first step of the first batch.

    Args:
        pipeline: whose scheduler ends the step; without one that steps, the first call does.
        denoiser: of the pipeline.
    """
    calls: list[dict[str, Any]] = []
    steps = hasattr(getattr(pipeline, "scheduler", None), "step")

    def see(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if calls and not steps:
            raise Seen
        calls.append(bound_inputs(module, args, kwargs))

    handle = denoiser.register_forward_pre_hook(see, with_kwargs=True)
    batches = run_batches(
        pipeline, denoiser, prompts[:batch_size], call,
        seed=seed, stream=0, batch_size=batch_size, output_type="latent", label="first step", inputs=inputs,
    )  # fmt: skip
    try:
        with ended(pipeline.scheduler) if steps else contextlib.nullcontext(), contextlib.suppress(Seen):
            next(batches)
    finally:
        batches.close()  # type: ignore[attr-defined]  # a generator
        handle.remove()
    return calls


@contextlib.contextmanager
def ended(scheduler: Any, see: Callable[..., None] | None = None) -> Iterator[None]:
    """Its first step raises `Seen`; `see` gets what it is called with."""
    before = vars(scheduler).get("step")

    def step(*args: Any, **kwargs: Any) -> Any:
        if see is not None:
            see(*args, **kwargs)
        raise Seen

    scheduler.step = step
    try:
        yield
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before
