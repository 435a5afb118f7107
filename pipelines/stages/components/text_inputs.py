"""Inputs of text encoders, recorded from the pipeline itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.pipeline_call import Stopped, told_by_sentence
from segquant_bench.pipelines.sampling.generate import PromptInputs, bound_inputs, prompt_seed
from segquant_bench.pipelines.sampling.samples import Sample, cut_sample


class _DenoiserReachedError(Stopped):
    """All text is encoded."""


class _Recorder:
    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self.prompt, self.calls = 0, 0

    def begin(self, prompt: int) -> None:
        self.prompt, self.calls = prompt, 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = bound_inputs(module, args, kwargs)
        if not any(isinstance(value, torch.Tensor) and value.ndim > 1 for value in inputs.values()):
            raise PipelineError(f"{self.name} was called without token ids [rows, tokens]; take it out of quantize")
        try:
            self.samples.append(cut_sample(inputs, 0, 1, self.prompt, self.calls))
        except PipelineError as error:
            raise PipelineError(
                f"a call of {self.name} cannot be recorded ({error}); take it out of quantize"
            ) from error
        self.calls += 1


def _stop(*_: Any) -> None:
    raise _DenoiserReachedError


def text_inputs(
    pipeline: Any,
    denoiser: nn.Module,
    names: Sequence[str],
    prompts: Sequence[str],
    call: Mapping[str, Any],
    *,
    seed: int,
    stream: int,
    inputs: PromptInputs | None = None,
) -> dict[str, list[Sample]]:
    """What the pipeline gives its text encoders, one prompt at a time, up to the first denoiser call.

    Nothing depends on `seed` and `stream`. Arguments are as for `sampling.generate.run_batches`.

    Returns:
        by encoder, every prompt's calls (`Sample.step` counts them), on the CPU.

    Raises:
        PipelineError: no prompts, an encoder that is not called, or inputs of another kind.
    """
    if not prompts:
        raise PipelineError("there are no prompts to calibrate text encoders on; set calibration.prompts")
    recorders = {name: _Recorder(name) for name in names}
    handles = [denoiser.register_forward_pre_hook(_stop)]
    handles += [
        pipeline.components[name].register_forward_pre_hook(recorder, with_kwargs=True)
        for name, recorder in recorders.items()
    ]
    try:
        for index, prompt in enumerate(prompts):
            for recorder in recorders.values():
                recorder.begin(index)
            own = inputs(range(index, index + 1)) if inputs is not None else {}
            _encode(pipeline, prompt, {**call, **own}, prompt_seed(seed, index, stream))
    finally:
        for handle in handles:
            handle.remove()
    for name, recorder in recorders.items():
        if not recorder.samples:
            kind = type(pipeline).__name__
            raise PipelineError(f"{kind} never calls the forward of its {name}; take it out of quantize")
    return {name: recorder.samples for name, recorder in recorders.items()}


def _encode(pipeline: Any, prompt: str, call: Mapping[str, Any], seed: int) -> None:
    generators = [torch.Generator("cpu").manual_seed(seed)]
    try:
        with told_by_sentence(pipeline):
            pipeline(prompt=[prompt], generator=generators, output_type="latent", **call)
    except _DenoiserReachedError:
        return
    raise PipelineError(f"{type(pipeline).__name__} never called its denoiser; check model.denoiser")
