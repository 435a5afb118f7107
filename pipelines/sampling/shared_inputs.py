from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.pipeline_call import Stopped, told_by_sentence
from segquant_bench.pipelines.sampling.generate import PromptInputs, arguments_for, bound_inputs
from segquant_bench.pipelines.sampling.samples import flat_tensors


class _ReachedError(Stopped):
    """The module is called."""


def shared_inputs(
    pipeline: Any,
    module: torch.nn.Module,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    inputs: PromptInputs | None = None,
) -> frozenset[str]:
    """Names, as in `Sample.shared`, of `module`'s tensors that are as long for two prompts as for one.

    The pipeline runs up to the module with one prompt and with two. A single prompt shares nothing.

    Raises:
        PipelineError: the pipeline never calls the module.
    """
    if len(prompts) < 2:
        return frozenset()
    one, two = (_first_tensors(pipeline, module, prompts[:count], call, inputs) for count in (1, 2))
    return frozenset(name for name, value in one.items() if value.ndim and value.shape == two[name].shape)


def _first_tensors(
    pipeline: Any, module: torch.nn.Module, prompts: Sequence[str], call: Mapping[str, Any], inputs: PromptInputs | None
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.update(flat_tensors(bound_inputs(module, args, kwargs)))
        raise _ReachedError

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    own = inputs(range(len(prompts))) if inputs is not None else {}
    try:
        with torch.random.fork_rng([]), told_by_sentence(pipeline):
            pipeline(output_type="latent", **{**arguments_for(prompts, call), **own})
    except _ReachedError:
        return found
    finally:
        handle.remove()
    raise PipelineError(f"{type(pipeline).__name__} never calls its {type(module).__name__}; check model.denoiser")
