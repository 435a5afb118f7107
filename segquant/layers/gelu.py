"""GELU in the same pass as the quantized linear before it, in diffusers' modules of both.

`diffusers.models.activations.GELU` (the feed-forwards of SD3, PixArt and FLUX's double blocks …) multiplies by its
`proj` and takes GELU of what comes out. Where a backend does both at once, the module's forward asks it to.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from segquant.layers.linear import QuantLinear

PLACE = "diffusers.models.activations.GELU"


class AtOnce(nn.Module):
    """Base of the classes that `_at_once` makes of that of diffusers.

    They ask at every call: whoever hooks, wraps or replaces `proj` afterwards gets the two one after the other.
    """

    inner: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _made, (self.inner,), self.__dict__


def set_gelu_(model: nn.Module) -> set[int]:
    """Let modules whose `proj` has a backend for both do both in one pass, and no others; ids of these `proj`.

    Those that are watched now are left out of the answer.
    """
    found = set()
    for module in model.modules():
        changed: Any = module
        if isinstance(module, AtOnce) and type(module) is _at_once(module.inner):
            changed.__class__ = module.inner
        kind: Any = type(module)
        if f"{kind.__module__}.{kind.__qualname__}" == PLACE and changed.approximate == "tanh" and _fits(changed.proj):
            changed.__class__ = _at_once(kind)
            if not _is_watched(changed) and "forward" not in changed.__dict__:
                found.add(id(changed.proj))
    return found


def _fits(proj: nn.Module) -> bool:
    if type(proj) is not QuantLinear or not hasattr(proj.backend, "with_gelu"):
        return False
    return proj.backend.with_gelu(proj.layout)


def _is_watched(module: Any) -> bool:
    """Whether somebody looks at the linear's output, or does GELU otherwise."""
    proj, own = module.proj, module.__dict__
    hooks = proj._forward_hooks or proj._forward_pre_hooks or everywhere._global_forward_hooks
    return bool(
        module.approximate != "tanh"
        or "gelu" in own
        or "forward" in proj.__dict__
        or hooks
        or everywhere._global_forward_pre_hooks
    )


@functools.lru_cache
def _at_once(inner: Any) -> Any:
    """A class derived from diffusers', so that code which asks for its type finds it."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        # `inner`, not super(): whoever keeps this function may call it when the module's class is the old one again
        learns = hidden_states.requires_grad and torch.is_grad_enabled()
        able = type(self.proj) is QuantLinear and hasattr(self.proj.backend, "linear_gelu")
        made: Tensor
        if able and not learns and not _is_watched(self):
            made = self.proj.linear_gelu(hidden_states)
        else:
            made = inner.forward(self, hidden_states)
        return made

    return type(inner.__name__, (AtOnce, inner), {"inner": inner, "forward": forward, "__module__": inner.__module__})


def _made(inner: Any) -> nn.Module:
    kind = _at_once(inner)
    made: nn.Module = kind.__new__(kind)
    return made
