"""Models inside wrappers: torch.compile, data parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from segquant.errors import QuantizationError

INNER = "_orig_mod"
"""Where torch.compile keeps the module that it wraps."""


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """The model without wrappers or compiled code; what was compiled is so again afterwards.

    Raises:
        QuantizationError: it is sharded (FSDP), so that no layer has its whole weight.
    """
    _refuse_sharded(model)
    while isinstance(model, (DataParallel, DistributedDataParallel)) or _is_compiled(model):
        model = model._modules[INNER] if _is_compiled(model) else model.module  # type: ignore[assignment]
    wrapped = [
        (parent, key, child)
        for parent in list(model.modules())
        for key, child in parent._modules.items()
        if child is not None and _is_compiled(child)
    ]
    for parent, key, wrapper in wrapped:
        parent._modules[key] = wrapper._modules[INNER]
    compiled = [(module, taken) for module in model.modules() if (taken := _without_compiled(module))]
    try:
        yield model
    finally:
        for module, taken in compiled:
            vars(module).update(taken)
        again: dict[int, nn.Module] = {}
        for parent, key, wrapper in wrapped:
            inner = parent._modules[key]
            if inner is not wrapper._modules[INNER] and id(inner) not in again:
                again[id(inner)] = type(wrapper)(inner, wrapper.dynamo_ctx)
            parent._modules[key] = again.get(id(inner), wrapper)


def _is_compiled(module: nn.Module) -> bool:
    # torch._dynamo takes seconds to import; a module that it wrapped tells by what it has
    return INNER in module._modules and "dynamo_ctx" in vars(module)


def _without_compiled(module: nn.Module) -> dict[str, Any]:
    """Takes the attributes that run compiled code from a module, and returns them."""
    taken: dict[str, Any] = {}
    if vars(module).get("_compiled_call_impl") is not None:
        taken["_compiled_call_impl"] = module._compiled_call_impl
        module._compiled_call_impl = None
    forward = vars(module).get("forward")
    if hasattr(forward, "_torchdynamo_orig_callable"):
        taken["forward"] = vars(module).pop("forward")
    return taken


def _refuse_sharded(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.distributed.fsdp")]
        if kinds:
            raise QuantizationError(
                f"{name or 'the model'} is sharded ({kinds[0].__name__}), so that no layer has its whole weight here; "
                "quantize the model before it is sharded"
            )
