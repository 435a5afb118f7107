"""GELU in the same pass as the quantized linear before it, in diffusers' modules of both.

`diffusers.models.activations.GELU` (the feed-forwards of SD3, FLUX, PixArt …) multiplies by its `proj` and takes GELU
of what comes out. Where a backend does both at once, the module's forward asks it to.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from segquant.kernels.backend import Backend
from segquant.layers.linear import QuantLinear

PLACE = "diffusers.models.activations.GELU"


class AtOnce(nn.Module):
    """Base of the classes that `_at_once` makes of that of diffusers.

    It asks at every call: whoever hooks, wraps or replaces `proj` afterwards gets the two one after the other.
    """

    inner: type[nn.Module]
    proj: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if isinstance(self.proj, QuantLinear) and _is_plain(self.proj, hidden_states):
            return self.proj.linear_gelu(hidden_states)
        output: Tensor = super().forward(hidden_states)
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _made, (self.inner,), self.__dict__


def set_gelu_(model: nn.Module) -> set[str]:
    """Let modules whose `proj` has a backend for both do both in one pass, and no others; names of these `proj`."""
    found = set()
    for name, module in model.named_modules():
        kind: Any = type(module)
        changed: Any = module
        if isinstance(module, AtOnce):
            changed.__class__ = kind = module.inner
        if f"{kind.__module__}.{kind.__qualname__}" == PLACE and _fits(module):
            changed.__class__ = _at_once(kind)
            found.add(f"{name}.proj" if name else "proj")
    return found


def _fits(module: Any) -> bool:
    proj = module.proj
    return (
        module.approximate == "tanh"
        and isinstance(proj, QuantLinear)
        and type(proj.backend).linear_gelu is not Backend.linear_gelu
    )


def _is_plain(proj: QuantLinear, x: Tensor) -> bool:
    """Whether nothing looks at the linear's output, and no gradient goes through it."""
    watched = proj._forward_hooks or proj._forward_pre_hooks or "forward" in proj.__dict__
    return not watched and type(proj) is QuantLinear and not (x.requires_grad and torch.is_grad_enabled())


@functools.lru_cache
def _at_once(inner: Any) -> type[nn.Module]:
    return type(inner.__name__, (AtOnce, inner), {"inner": inner, "__module__": inner.__module__})


def _made(inner: Any) -> nn.Module:
    kind = _at_once(inner)
    return kind.__new__(kind)
