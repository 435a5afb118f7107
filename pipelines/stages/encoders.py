"""Quantized text encoders and ControlNets: calibrated on what, made, measured, stored, had again, put in place.

A text encoder runs before the denoiser. Its inputs are recorded from the pipeline itself, which is run up to its
first denoiser call: token ids of prompts and negative prompts as it makes them. A ControlNet runs at every step, and
its inputs are recorded as the denoiser's are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import segquant
from segquant import Method, Outcome, QuantizationError, Segments
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.errors import PipelineError, nearest, one_line
from segquant_bench.pipelines.runtime.progress import progress_bar
from segquant_bench.pipelines.sampling.generate import PromptInputs, bound_inputs, prompt_seed
from segquant_bench.pipelines.sampling.samples import Batches, Sample, cut_sample
from segquant_bench.pipelines.stages.quantized import twin

if TYPE_CHECKING:
    from segquant_bench.pipelines.config.schema import RunConfig


ABLE = ("text_encoder", "controlnet")
"""What names of components say that can be quantized beside the denoiser."""


class _DenoiserReachedError(Exception):
    """The pipeline calls its denoiser: all text is encoded."""


def check_encoders(index: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse names that are no text encoders or ControlNets of a pipeline, given its parsed model_index.json.

    Raises:
        PipelineError: no such component, an empty one, or one of another kind.
    """
    components = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    able = [name for name, kind in components.items() if any(word in name for word in ABLE) and kind is not None]
    for name in names:
        pipeline = index["_class_name"]
        if name not in components:
            hint = nearest(name, ["denoiser", *able])
            raise PipelineError(f"quantize names {name!r}, which {pipeline} does not have; {hint}")
        if components[name] is None:
            raise PipelineError(f"quantize names {name!r}, which is empty in this {pipeline}; take it out of quantize")
        if name not in able:
            raise PipelineError(
                f"quantize names {name!r} ({components[name]}), which is neither text encoder nor ControlNet; here it "
                f"takes {', '.join(['denoiser', *able])}"
            )


def encoder_method(config: RunConfig, name: str) -> Method:
    """The run's method for one component: the same precision and settings, changed by `encoders.NAME`.

    `skip` and `overrides` name layers of the denoiser, so another component starts without any.

    Raises:
        PipelineError: a setting that the quantizer does not take.
    """
    changes = config.encoders.get(name, {})
    quantizer = {key: value for key, value in config.quantizer.items() if key not in ("skip", "overrides")}
    try:
        method = build_method(dataclasses.replace(config, quantizer={**quantizer, **changes}))
    except PipelineError as error:
        raise PipelineError(f"{_kind(name)} {name!r}: {error}") from error
    return method


def _kind(name: str) -> str:
    return "ControlNet" if "controlnet" in name else "text encoder"


class _Recorder:
    """A forward pre-hook that keeps an encoder's inputs; `prompt` is the one being encoded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self.prompt, self.calls = 0, 0

    def begin(self, prompt: int) -> None:
        """The next prompt's calls follow."""
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


def encoder_inputs(
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
    """What the pipeline gives its text encoders for `prompts`, one prompt at a time, without any denoising.

    Args:
        pipeline: with the encoders as attributes.
        denoiser: at whose first call the pipeline is stopped.
        names: attributes of the encoders.
        prompts: texts to encode.
        call: further arguments of the pipeline.
        seed: of the latents, with `stream`; nothing recorded depends on them.
        stream: see `generate.prompt_seed`.
        inputs: further arguments for the prompts of these indices, such as their control pictures.

    Returns:
        by encoder, the inputs of each call of each prompt (`Sample.step` counts a prompt's calls), on the CPU.

    Raises:
        PipelineError: no prompts, an encoder whose forward the pipeline does not call, or inputs of another kind.
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
        pipeline(prompt=[prompt], generator=generators, output_type="latent", **call)
    except _DenoiserReachedError:
        return
    raise PipelineError(f"{type(pipeline).__name__} never called its denoiser; check model.denoiser")


def quantize_encoder(name: str, encoder: nn.Module, method: Method, batches: Batches) -> tuple[nn.Module, Outcome]:
    """A quantized copy of a text encoder or ControlNet, and what was done to it.

    Raises:
        PipelineError: the graph cannot be read, or the method cannot do it; the sentence names the component.
    """
    segments = _segments(name, encoder, method, batches)
    try:
        with progress_bar(f"{method.name} ({name})") as progress:
            quantized = twin(encoder)
            return quantized, segquant.quantize_with_outcome_(quantized, method, batches, segments, progress=progress)
    except QuantizationError as error:
        raise PipelineError(
            f"{_kind(name)} {name!r}: {one_line(error)} (settings of it alone: +encoders.{name}.KEY=VALUE)"
        ) from error


def _segments(name: str, encoder: nn.Module, method: Method, batches: Batches) -> dict[str, Segments] | None:
    layers = (method.for_layer(layer) for layer, module in encoder.named_modules() if isinstance(module, nn.Linear))
    if not any(entry is not None and entry.cuts.wants_graph for entry in layers):
        return None
    try:
        return segquant.find_segments(encoder, (), next(iter(batches)))
    except QuantizationError as error:
        off = f"+encoders.{name}.seglinear=false +encoders.{name}.dualscale=false"
        raise PipelineError(
            f"the graph of {_kind(name)} {name!r} cannot be read ({one_line(error)}); quantize it without: {off}"
        ) from error


def encoder_errors(
    name: str, encoder: nn.Module, quantized: nn.Module, held_out: Sequence[Sample], size: int, device: str
) -> dict[str, Any]:
    """Relative errors on held-out prompts, of every layer as "NAME.LAYER" and of the output; and bytes."""
    batches = Batches(held_out, size, device)
    layers = segquant.layer_errors(encoder, quantized, batches)
    return {
        "layer_errors": {f"{name}.{layer}": error for layer, error in layers.items()},
        "output_error": segquant.output_error(encoder, quantized, batches),
        "weight_bytes": segquant.model_weight_bytes(quantized),
        "weight_bytes_float": segquant.model_weight_bytes(encoder),
    }


def component_bytes(pipeline: Any) -> dict[str, int]:
    """Bytes of every component of a pipeline that has weights."""
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {name: segquant.model_weight_bytes(module) for name, module in modules.items()}


def load_encoder(folder: Path, encoder: nn.Module) -> nn.Module:
    """The quantized encoder stored in `folder`, in evaluation mode on the float encoder's device.

    It is filled into a copy of `encoder` whose parameters have no storage, so that no float weight is held twice.
    """
    device = next(encoder.parameters()).device
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in encoder.parameters()
    }
    return segquant.load_quantized(folder, copy.deepcopy(encoder, memo)).to(device).eval()


@contextmanager
def in_place(pipeline: Any, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within the block the pipeline has `modules` as its components of these names."""
    originals = {name: pipeline.components[name] for name in modules}
    try:
        for name, module in modules.items():
            setattr(pipeline, name, module)
        yield
    finally:
        for name, module in originals.items():
            setattr(pipeline, name, module)
