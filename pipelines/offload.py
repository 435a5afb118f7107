"""What is not where it runs: components that wait in main memory, denoisers whose blocks are read from disk as they
run, modules without any weights at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from accelerate import init_empty_weights
from torch import nn

import segquant
from pipelines.errors import PipelineError, one_line
from pipelines.method import progress_bar
from pipelines.model_files import weight_files
from pipelines.models import denoiser_class, resolve_device
from pipelines.sections import ModelConfig
from segquant import Method, QuantizationError
from segquant.offload import FileWeights, Offloaded
from segquant.stream import quantize_offloaded_


def empty_module(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A diffusers model as its config.json says, parameters on the meta device, buffers as they are initialised.

    Args:
        kind: its class; a class that diffusers has split up gives the one that it became.
        folder: with config.json.
        dtype: of the parameters.
    """
    config = kind.load_config(folder)
    kind = _successor(kind, config)
    with _default_dtype(dtype), init_empty_weights():
        return kind.from_config(config).eval()


def _successor(kind: Any, config: dict[str, Any]) -> Any:
    from diffusers.models.model_loading_utils import _CLASS_REMAPPING_DICT, _fetch_remapped_cls_from_config

    return _fetch_remapped_cls_from_config(config, kind) if kind.__name__ in _CLASS_REMAPPING_DICT else kind


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As diffusers builds its models: what the constructor makes has the dtype that the weights will have."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def offloaded_denoiser(config: ModelConfig, directory: Path) -> Offloaded:
    """The denoiser of a pipeline directory with its blocks on disk; the same numbers as if it were loaded whole.

    Raises:
        PipelineError: a weight is missing or of another shape, or the denoiser has no blocks.
    """
    kind, folder = denoiser_class(config, directory)
    dtype, device = getattr(torch, config.dtype), resolve_device(config.device)
    model = empty_module(kind, folder, dtype)
    try:
        weights = FileWeights(weight_files(folder, config.variant))
        weights.check(name for name, _ in model.named_parameters())
        _fill_buffers(model, weights, dtype)
        _keep_precise(model)
        return Offloaded(model, weights, device)
    except QuantizationError as error:
        raise PipelineError(f"{folder} cannot be offloaded: {one_line(error)}; set model.offload=none") from error


def _is_precise(model: nn.Module, name: str) -> bool:
    """Whether the model's class wants a tensor in float32 whatever the rest is in, as from_pretrained does it."""
    return bool(set(getattr(model, "_keep_in_fp32_modules", None) or ()) & set(name.split(".")))


def _fill_buffers(model: nn.Module, weights: FileWeights, dtype: torch.dtype) -> None:
    """Buffers that the files hold (position tables) are read; others are as the constructor made them."""
    stored = [name for name, _ in model.named_buffers() if name in weights]
    for name, tensor in weights(stored).items():
        owner, _, key = name.rpartition(".")
        wanted = torch.float32 if _is_precise(model, name) else dtype
        model.get_submodule(owner)._buffers[key] = tensor.to(wanted) if tensor.is_floating_point() else tensor


def _keep_precise(model: nn.Module) -> None:
    """Make the empty parameters that are to be float32 so."""
    for name, parameter in list(model.named_parameters()):
        if _is_precise(model, name):
            owner, _, key = name.rpartition(".")
            empty = torch.empty_like(parameter, dtype=torch.float32)
            model.get_submodule(owner)._parameters[key] = nn.Parameter(empty, requires_grad=False)


def quantize_from_disk(
    config: ModelConfig, directory: Path, method: Method, batches: Iterable[Any], label: str
) -> nn.Module:
    """The quantized denoiser, made block by block: one block's float weights are in memory at a time.

    Returns:
        it, in main memory, in evaluation mode.
    """
    with progress_bar(label) as progress:
        offloaded = offloaded_denoiser(config, directory)
        return lean_(quantize_offloaded_(offloaded, method, batches, progress=progress)).to("cpu")


def load_lean(config: ModelConfig, directory: Path, folder: Path) -> nn.Module:
    """A stored quantized denoiser, read without ever making float weights, in evaluation mode in main memory."""
    kind, source = denoiser_class(config, directory)
    model = empty_module(kind, source, getattr(torch, config.dtype))
    return lean_(segquant.load_quantized(folder, model))


def lean_(model: nn.Module) -> nn.Module:
    """Let quantized layers make their float weights anew whenever they run: slower, and the memory of one layer."""
    for module in model.modules():
        if isinstance(module, segquant.QuantLinear):
            module.keep_dequantized = False
    return model


def pin_device(pipeline: Any, device: str) -> None:
    """Let the pipeline make its latents on `device`, wherever its first parameter lies; it keeps its class's name."""
    _extend(pipeline, _execution_device=property(lambda _: torch.device(device)))


def _extend(pipeline: Any, **members: Any) -> None:
    """Give one pipeline further members of its class."""
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {**members, "__module__": kind.__module__})


class Residence:
    """The components that are on a device, one group of them at a time; the others wait in main memory.

    Every text encoder and the autoencoder is a group of its own. What runs at every step is one: the denoiser and its
    ControlNet, and whatever stands beside one of them to be compared, such as its quantized copy.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.present: WeakSet[nn.Module] = WeakSet()
        self.group = ""

    def enter(self, module: nn.Module, group: str) -> None:
        """Have a module of a group on the device, and modules of no other."""
        if group != self.group:
            self.empty()
            self.group = group
        if module not in self.present:
            module.to(self.device)
            self.present.add(module)

    def leave(self, module: nn.Module) -> None:
        """Send a module to main memory."""
        module.to("cpu")
        self.present.discard(module)

    def empty(self) -> None:
        """Send all of them."""
        for module in list(self.present):
            self.leave(module)
        empty_cache(self.device)


class Door:
    """A component's forward pre-hook, which brings it onto its device.

    diffusers' own off-loading puts accelerate's hooks on components, which replace their forwards, know each other and
    cannot be copied; a copy of one with a door comes in through the same door, so it may run in its stead.
    """

    def __init__(self, residence: Residence, group: str) -> None:
        self.residence, self.group = residence, group

    def __call__(self, module: nn.Module, *_: Any) -> None:
        self.residence.enter(module, self.group)

    pre_forward = __call__
    """The name by which diffusers calls it before an autoencoder encodes or decodes."""

    def __deepcopy__(self, _: dict[int, Any]) -> Door:
        return self

    def open_to(self, module: nn.Module) -> None:
        """From now on the module comes in here whenever it runs, before any other hook of it."""
        module.register_forward_pre_hook(self, prepend=True)
        if hasattr(module, "decode"):
            module._hf_hook = self


def door_of(module: nn.Module) -> Door | None:
    """The door that a module comes in through; None if it stays where it is."""
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, Door)), None)


def offload_components(pipeline: Any, device: str, fixed: Collection[str] = ()) -> None:
    """Let a pipeline's components wait in main memory and come onto `device` when they run.

    A module that is assigned to the pipeline in the place of such a component comes and goes as that did, which goes.

    Args:
        pipeline: of diffusers, its components in main memory.
        device: where it runs.
        fixed: names of components that stay where they are.
    """
    residence = Residence(device)
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module) and name not in fixed:
            own = "text_encoder" in name or hasattr(module, "decode")
            Door(residence, name if own else "every step").open_to(module)
    pin_device(pipeline, device)
    kind = type(pipeline)

    def assign(self: Any, name: str, value: Any) -> None:
        before = vars(self).get(name)
        kind.__setattr__(self, name, value)
        if isinstance(before, nn.Module) and isinstance(value, nn.Module) and before is not value:
            _replace(before, value)

    _extend(pipeline, __setattr__=assign)


def _replace(before: nn.Module, after: nn.Module) -> None:
    door = door_of(before)
    if door is None:
        return
    door.residence.leave(before)
    if door_of(after) is None:
        door.open_to(after)
        door(after)  # it may be on the device already, and be in the way of others


def empty_cache(device: torch.device) -> None:
    """Let go of what torch keeps for later, so that what is free shows."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
