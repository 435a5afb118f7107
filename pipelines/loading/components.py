"""Components that wait in main memory (model.offload=components)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import nn


def pin_device(pipeline: Any, device: str) -> None:
    """Make the pipeline's latents on `device`; its class keeps its name."""
    _extend(pipeline, _execution_device=property(lambda _: torch.device(device)))


def _extend(pipeline: Any, **members: Any) -> None:
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {**members, "__module__": kind.__module__})


class DeviceSlot:
    """The one group of components on a device.

    Text encoders and autoencoder are groups of their own; denoiser, ControlNet and copies are one.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.present: WeakSet[nn.Module] = WeakSet()
        self.group = ""

    def enter(self, module: nn.Module, group: str) -> None:
        """Bring a module in, other groups out."""
        if group != self.group:
            self.empty()
            self.group = group
        if module not in self.present:
            module.to(self.device)
            self.present.add(module)

    def leave(self, module: nn.Module) -> None:
        module.to("cpu")
        self.present.discard(module)

    def empty(self) -> None:
        for module in list(self.present):
            self.leave(module)
        empty_cache(self.device)


class DeviceHook:
    """A forward pre-hook that brings a component onto its device; a component's copy shares it."""

    def __init__(self, slot: DeviceSlot, group: str) -> None:
        self.slot, self.group = slot, group

    def __call__(self, module: nn.Module, *_: Any) -> None:
        self.slot.enter(module, self.group)

    pre_forward = __call__
    """The name by which diffusers calls it before an autoencoder encodes or decodes."""

    def __deepcopy__(self, _: dict[int, Any]) -> DeviceHook:
        return self

    def attach(self, module: nn.Module) -> None:
        """Run before any of the module's other hooks."""
        module.register_forward_pre_hook(self, prepend=True)
        if hasattr(module, "decode"):
            cast(Any, module)._hf_hook = self


def hook_of(module: nn.Module) -> DeviceHook | None:
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, DeviceHook)), None)


def offload_components(pipeline: Any, device: str, fixed: Collection[str] = ()) -> None:
    """Components and later replacements wait in main memory and run on `device`; `fixed` ones stay."""
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
    if device.type != "cpu":
        torch.accelerator.empty_cache()
