"""Components that wait in main memory and come to the device as they run (model.offload=components)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import nn


def pin_device(pipeline: Any, device: str) -> None:
    """Let the pipeline make its latents on `device`, wherever its first parameter lies; it keeps its class's name."""
    _extend(pipeline, _execution_device=property(lambda _: torch.device(device)))


def _extend(pipeline: Any, **members: Any) -> None:
    """Give one pipeline further members of its class."""
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {**members, "__module__": kind.__module__})


class DeviceSlot:
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


class DeviceHook:
    """A component's forward pre-hook, which brings it onto its device.

    diffusers' own off-loading puts accelerate's hooks on components, which replace their forwards, know each other and
    cannot be copied. A copy of a component shares this hook, so it may run in the component's place.
    """

    def __init__(self, slot: DeviceSlot, group: str) -> None:
        self.slot, self.group = slot, group

    def __call__(self, module: nn.Module, *_: Any) -> None:
        self.slot.enter(module, self.group)

    pre_forward = __call__
    """The name by which diffusers calls it before an autoencoder encodes or decodes."""

    def __deepcopy__(self, _: dict[int, Any]) -> DeviceHook:
        return self

    def attach(self, module: nn.Module) -> None:
        """Bring the module onto the device whenever it runs, before any of its other hooks."""
        module.register_forward_pre_hook(self, prepend=True)
        if hasattr(module, "decode"):
            cast(Any, module)._hf_hook = self


def hook_of(module: nn.Module) -> DeviceHook | None:
    """The hook that brings a module onto its device; None if the module stays where it is."""
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, DeviceHook)), None)


def offload_components(pipeline: Any, device: str, fixed: Collection[str] = ()) -> None:
    """Let a pipeline's components wait in main memory and come onto `device` when they run.

    A module that is assigned to the pipeline in the place of such a component comes and goes as that did, which goes.

    Args:
        pipeline: of diffusers, its components in main memory.
        device: where it runs.
        fixed: names of components that stay where they are.
    """
    slot = DeviceSlot(device)
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module) and name not in fixed:
            own = "text_encoder" in name or hasattr(module, "decode")
            DeviceHook(slot, name if own else "every step").attach(module)
    pin_device(pipeline, device)
    kind: Any = type(pipeline)

    def assign(self: Any, name: str, value: Any) -> None:
        before = vars(self).get(name)
        kind.__setattr__(self, name, value)
        if isinstance(before, nn.Module) and isinstance(value, nn.Module) and before is not value:
            _replace(before, value)

    _extend(pipeline, __setattr__=assign)


def _replace(before: nn.Module, after: nn.Module) -> None:
    hook = hook_of(before)
    if hook is None:
        return
    hook.slot.leave(before)
    if hook_of(after) is None:
        hook.attach(after)
        hook(after)  # it may be on the device already, and be in the way of others


def empty_cache(device: torch.device) -> None:
    """Free the memory that torch caches on a device."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
