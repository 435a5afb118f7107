from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from segquant.keep import Keeper
from segquant_bench.pipelines.config.sections import CalibrationConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.sampling.clock import Clock, watched
from segquant_bench.pipelines.sampling.generate import PromptInputs, StepCounter, bound_inputs, run_batches
from segquant_bench.pipelines.sampling.own_timesteps import own_weights
from segquant_bench.pipelines.sampling.samples import Sample, cut_sample, packed, unpacked
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.pipelines.sampling.shared_inputs import shared_inputs
from segquant_bench.pipelines.sampling.timesteps import draw_steps, normal_weights, rounding_loss

WEIGHTS = "weights"
"""The piece beside a pilot's batches."""


class InputCollector:
    """A forward pre-hook that keeps inputs of wanted (prompt, step) pairs; call `begin` before each batch.

    All calls of a step are kept: guidance may call twice, with the prompt and with the negative one.
    `shared` names inputs without rows; `clock` tells the scheduler's step.
    """

    def __init__(
        self, wanted: Sequence[frozenset[int]], shared: frozenset[str] = frozenset(), clock: Clock | None = None
    ) -> None:
        self.wanted, self.shared, self._clock = wanted, shared, clock
        self.samples: list[Sample] = []
        self._indices = range(0)
        self._counter = StepCounter()
        self._last, self._calls = -1, 0

    def begin(self, indices: range) -> None:
        self._indices, self._counter, self._last = indices, StepCounter(self._clock), -1
        if self._clock is not None:
            self._clock.restart()

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = bound_inputs(module, args, kwargs)
        step = self._counter.step(inputs)
        self._calls = self._calls + 1 if step == self._last else 0
        self._last = step
        for item, prompt in enumerate(self._indices):
            if step in self.wanted[prompt]:
                sample = cut_sample(inputs, item, len(self._indices), prompt, step, self.shared)
                self.samples.append(replace(sample, call=self._calls))


def collect(
    pipeline: Any,
    denoiser: torch.nn.Module,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    *,
    steps_per_prompt: int | None,
    seed: int,
    stream: int,
    batch_size: int,
    label: str,
    weights: np.ndarray | None = None,
    inputs: PromptInputs | None = None,
    module: torch.nn.Module | None = None,
    keep: Keeper | None = None,
    share: Share | None = None,
) -> list[Sample]:
    """Keep each prompt's denoiser inputs at `steps_per_prompt` drawn steps (None: all).

    Args:
        denoiser: whose output is watched and whose inputs are kept.
        call: with `num_inference_steps`.
        seed: of latents and steps, with `stream` and the prompt's index.
        stream: keeps evaluation (0), calibration (1) and held-out (2) apart.
        weights: float64 [steps], how likely each is; None: all alike.
        inputs: further arguments by prompt index, such as control pictures.
        module: whose inputs are kept instead: a ControlNet.
        keep: has the samples of batches that a run before had finished, and takes those of others.
        share: only its batches.

    Returns:
        Samples in order of prompt, step and call, on the CPU.

    Raises:
        PipelineError: no prompts, too few steps, NaN in the denoiser's output.
    """
    if not prompts:
        raise PipelineError("there are no calibration prompts; set calibration.prompts to at least 1")
    total = call["num_inference_steps"]
    wanted = [draw_steps(total, steps_per_prompt, seed, stream, index, weights) for index in range(len(prompts))]
    source = denoiser if module is None else module
    starts = range(0, len(prompts), batch_size)
    found = {start: _kept(keep, start) for start in starts if share is None or share.has(start, batch_size)}
    if all(samples is not None for samples in found.values()):
        return _in_order(found)
    together = prompts[: min(batch_size, 2)]
    shared = shared_inputs(pipeline, source, together, call, inputs)
    with watched(pipeline) as clock:
        collector = InputCollector(wanted, shared, clock)
        handle = source.register_forward_pre_hook(collector, with_kwargs=True)
        try:
            batches = run_batches(
                pipeline, denoiser, prompts, call,
                seed=seed, stream=stream, batch_size=batch_size, output_type="latent", label=label,
                on_batch=collector.begin, inputs=inputs,
                is_done=lambda indices: found.get(indices.start, ()) is not None,
            )  # fmt: skip
            for indices, _ in batches:
                found[indices.start], collector.samples = collector.samples, []
                _keep(keep, indices.start, found[indices.start])
        finally:
            handle.remove()
    return _in_order(found)


def _in_order(found: Mapping[int, list[Sample] | None]) -> list[Sample]:
    samples = [sample for batch in found.values() for sample in batch or ()]
    return sorted(samples, key=lambda sample: (sample.prompt, sample.step, sample.call))


def _kept(keep: Keeper | None, start: int) -> list[Sample] | None:
    piece = None if keep is None else keep.get(f"batch {start}")
    return None if piece is None else unpacked(piece.tensors, piece.about)


def _keep(keep: Keeper | None, start: int, samples: Sequence[Sample] | None) -> None:
    if keep is not None:
        keep.put(f"batch {start}", *packed(samples or ()))


def step_weights(
    config: CalibrationConfig,
    pipeline: Any,
    denoiser: torch.nn.Module,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    *,
    stream: int,
    batch_size: int,
    precision: str,
    device: str,
    inputs: PromptInputs | None = None,
    keep: Keeper | None = None,
) -> np.ndarray | None:
    """float64 [steps], how likely each is to be drawn; None where all are alike.

    "loss" weighs a step by the error of rounding to nearest, on `config.pilot` prompts. `keep` takes the weights
    too: other processes of the stage, and a run that goes on, find them there.
    """
    total = call["num_inference_steps"]
    if isinstance(config.timesteps, Mapping):
        return own_weights(config.timesteps, total, config.seed)
    if config.timesteps == "normal":
        return normal_weights(total, config.mean, config.std)
    if config.timesteps != "loss":
        return None
    kept = None if keep is None else keep.get(WEIGHTS)
    if kept is not None:
        known: np.ndarray = kept.tensors[WEIGHTS].numpy()
        return known
    pilot = collect(
        pipeline, denoiser, prompts[: config.pilot], call,
        steps_per_prompt=None, seed=config.seed, stream=stream, batch_size=batch_size, label="calibrate (pilot)",
        inputs=inputs, keep=keep,
    )  # fmt: skip
    found = rounding_loss(denoiser, pilot, precision, total, batch_size=config.batch_size, device=device)
    if keep is not None:
        keep.put(WEIGHTS, {WEIGHTS: torch.from_numpy(found)})
    return found
