from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segquant_bench.bars import tqdm  # isort: skip - as if it were tqdm's, see runtime.meaning

from segquant.files import write_whole
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.pipeline_call import told_by_sentence
from segquant_bench.pipelines.sampling.clock import Clock, watched
from segquant_bench.pipelines.sampling.draws import drawn_by_prompt
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.texts import plain

log = logging.getLogger(__name__)

PromptInputs = Callable[[range], Mapping[str, Any]]
"""From prompt indices to further arguments of the pipeline's call, one item per prompt."""
OTHER_DRAWS = 3
"""Added to a stream: that of noise which is not the latents'; there are three streams, see `stages.shared.inputs`."""


def prompt_seed(seed: int, index: int, stream: int = 0) -> int:
    """A hash of (seed, stream, index); streams keep evaluation (0) and calibration (1) apart."""
    return int(np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def arguments_for(prompts: Sequence[str], call: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments for these prompts: a negative prompt once for each, which not every pipeline repeats."""
    negative = call.get("negative_prompt")
    repeated = {"negative_prompt": [negative] * len(prompts)} if isinstance(negative, str) else {}
    return {"prompt": list(prompts), **call, **repeated}


def bound_inputs(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name, those of `**kwargs` too."""
    signature = inspect.signature(module.forward)
    inputs = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            inputs |= inputs.pop(name, {})
    return inputs


class StepCounter:
    """The sampling step of a denoiser call: the clock's, else different timesteps so far."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._seen: list[float] = []
        self._clock = clock

    def step(self, inputs: Mapping[str, Any]) -> int:
        """The 0-based step; without a clock and a timestep every call is one."""
        told = None if self._clock is None else self._clock.step()
        if told is not None:
            return told
        value = self.timestep(inputs)
        if value is None:
            value = float(len(self._seen))
        if value not in self._seen:
            self._seen.append(value)
        return self._seen.index(value)

    def timestep(self, inputs: Mapping[str, Any]) -> float | None:
        """The scheduler's, else the one that the denoiser is given; None if there is neither."""
        exact = None if self._clock is None else self._clock.timestep()
        given = inputs.get("timestep")
        return float(torch.as_tensor(given).reshape(-1)[0]) if exact is None and given is not None else exact


def first_tensor(output: Any) -> torch.Tensor:
    """The output itself, the first of a tuple, or `.sample`."""
    if isinstance(output, torch.Tensor):
        return output
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output.sample
    return found


@contextmanager
def finite_output(
    denoiser: torch.nn.Module, steps: int, prompts: Sequence[str], clock: Clock | None = None
) -> Iterator[None]:
    """PipelineError, naming step, timestep and prompt, at the first output that is not finite."""
    counter = StepCounter(clock)

    def check(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = bound_inputs(module, args, kwargs)
        step, result = counter.step(inputs), first_tensor(output)
        if not torch.isfinite(result).all():
            rows = torch.isfinite(result).reshape(len(result), -1).all(dim=1)
            row = int((~rows).nonzero()[0, 0])
            timestep = counter.timestep(inputs)
            where = "" if timestep is None else f" (timestep {timestep:g})"
            raise PipelineError(
                f"the denoiser's output is NaN or infinite at step {step + 1} of {steps}{where} for prompt "
                f"{prompts[row % len(prompts)]!r}; try another precision, more calibration prompts, or "
                "model.dtype=float32"
            )

    handle = denoiser.register_forward_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def run_batches(
    pipeline: Any,
    denoiser: torch.nn.Module,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    *,
    seed: int,
    stream: int,
    batch_size: int,
    output_type: str,
    label: str,
    on_batch: Callable[[range], None] | None = None,
    inputs: PromptInputs | None = None,
    is_done: Callable[[range], bool] = lambda indices: False,
) -> Iterator[tuple[range, Any]]:
    """Call the pipeline on `batch_size` prompts at a time; yields (prompt indices, images).

    `on_batch` gets the indices before each call; `inputs` gives further arguments. All noise is drawn per prompt on the
    CPU (see `draws` for what has no rows of prompts, which is seeded per batch), so batches which are done can be left
    out.
    """
    devices = sorted({p.device for p in denoiser.parameters() if p.device.type == "cuda"}, key=str)
    with tqdm(total=len(prompts), desc=plain(label), unit="picture", disable=None, leave=False) as bar:
        for start in range(0, len(prompts), batch_size):
            indices = range(start, min(start + batch_size, len(prompts)))
            if is_done(indices):
                bar.update(len(indices))
                continue
            batch = [prompts[i] for i in indices]
            generators = [torch.Generator("cpu").manual_seed(prompt_seed(seed, i, stream)) for i in indices]
            if on_batch is not None:
                on_batch(indices)
            own = inputs(indices) if inputs is not None else {}
            others = [torch.Generator("cpu").manual_seed(prompt_seed(seed, i, stream + OTHER_DRAWS)) for i in indices]
            with (
                watched(pipeline) as clock,
                finite_output(denoiser, call["num_inference_steps"], batch, clock),
                drawn_by_prompt(pipeline, others),
                torch.random.fork_rng(devices),
            ):
                torch.manual_seed(prompt_seed(seed, start, stream))
                arguments = {**arguments_for(batch, call), **own}
                with told_by_sentence(pipeline):
                    result = pipeline(generator=generators, output_type=output_type, **arguments)
            yield indices, result.images
            bar.update(len(indices))


def generate_images(
    pipeline: Any,
    denoiser: torch.nn.Module,
    prompts: Sequence[str],
    output: Path,
    call: Mapping[str, Any],
    *,
    seed: int,
    batch_size: int,
    label: str = "generate",
    inputs: PromptInputs | None = None,
    share: Share | None = None,
) -> None:
    """Write 00000.png … and manifest.json into the folder `output`; batches that lie there are not made again.

    Args:
        pipeline: its `.images` for "np" are float N×H×W×3 in [0, 1].
        denoiser: whose output is watched.
        call: with `num_inference_steps`.
        seed: of the latents, with the prompt's index.
        batch_size: last bits depend on it.
        inputs: further arguments by prompt index, such as control pictures.
        share: only its batches, and no manifest.

    Raises:
        PipelineError: no prompts, or NaN in an output or picture.
    """
    if not prompts:
        raise PipelineError("there are no prompts to generate pictures for; check dataset.size and the prompt file")
    output.mkdir(parents=True, exist_ok=True)
    batches = run_batches(
        pipeline, denoiser, prompts, call,
        seed=seed, stream=0, batch_size=batch_size, output_type="np", label=label, inputs=inputs,
        is_done=lambda indices: _is_others(share, indices, batch_size) or all(
            _picture(output, index).is_file() for index in indices
        ),
    )  # fmt: skip
    for indices, pictures in batches:
        for index, picture in zip(indices, pictures, strict=True):
            _write_picture(picture, _picture(output, index), prompts[index])
    if share is not None:
        return
    rows = [
        {"file": _picture(output, index).name, "prompt": prompt, "seed": prompt_seed(seed, index)}
        for index, prompt in enumerate(prompts)
    ]
    manifest = {"call": dict(call), "seed": seed, "batch_size": batch_size, "images": rows}
    (output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _is_others(share: Share | None, indices: range, batch_size: int) -> bool:
    return share is not None and not share.has(indices.start, batch_size)


def _picture(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.png"


def _write_picture(picture: np.ndarray, path: Path, prompt: str) -> None:
    if not np.isfinite(picture).all():
        raise PipelineError(f"the decoder made NaN of prompt {prompt!r}; try model.dtype=float32")
    image = Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8))
    write_whole(path, lambda partial: image.save(partial, format="PNG"), settled=True)
