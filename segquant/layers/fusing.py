"""Fusing adapters (LoRA): diffusers and peft refuse it before they begin, where a quantized layer has one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from segquant.errors import QuantizationError
from segquant.modules.layers import Replaced, has_adapter

FUSING = {
    "diffusers.loaders.peft": ("PeftAdapterMixin", ("fuse_lora",)),
    "peft.tuners.tuners_utils": ("BaseTuner", ("merge_adapter", "merge_and_unload")),
}
"""By module, the class whose methods add adapters to the weights of a model's layers, one layer after the other."""


def guard_fusing() -> None:
    """Wrap these methods, for the whole process: a refusal on the way would leave a model half fused."""
    for module, (owner, names) in FUSING.items():
        kind = getattr(sys.modules.get(module), owner, None)
        for name in names:
            method = getattr(kind, name, None)
            if method is not None and not hasattr(method, "guards"):
                setattr(kind, name, _guarded(method))


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def fuse(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found = [name for name, module in self.named_modules() if has_adapter(module) and _is_quantized(module)]
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise QuantizationError(
                f"{method.__name__} would add the adapter to the weights of {found[0]}{more}, which are codes; fuse it "
                "into the float model before quantize_, or leave it beside the layers"
            )
        return method(self, *args, **kwargs)

    fuse.guards = method  # type: ignore[attr-defined]
    return fuse


def _is_quantized(adapter: nn.Module) -> bool:
    return isinstance(adapter.get_submodule("base_layer"), Replaced)
