"""What computes attention between the layers: torch, or the CPU's kernel through a module's processor.

diffusers' attention modules leave the computation to a processor, which calls `F.scaled_dot_product_attention`. The
kernel takes those calls inside this one processor; nothing else in the process changes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from segquant.errors import QuantizationError
from segquant.kernels.cpu.attention import MULTIPLE, Functional, KernelAttention, with_functional
from segquant.kernels.cpu.operators import why_not_exact

Attention = Literal["torch", "float", "int8"]
TORCH: Attention = "torch"
ATTENTIONS: tuple[Attention, ...] = ("torch", "float", "int8")
CALLED = frozenset({"scaled_dot_product_attention", "dispatch_attention_fn"})
"""By one of these names a processor calls attention."""
NATIVE = (None, "native")
"""Of diffusers' own ways of attention, those that are torch's."""


class KernelProcessor:
    """Base of the classes that `_with_kernel` makes: a processor whose attention is the kernel's."""

    codes: bool
    inner: type[Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _processor, (self.inner, self.codes, vars(self).copy())


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that compute attention, by name."""
    return {name: module for name, module in model.named_modules() if _has_processor(module) or _calls(module.forward)
            or isinstance(module, nn.MultiheadAttention)}  # fmt: skip


def why_not(module: nn.Module) -> str | None:
    """Why the kernel cannot take a module's attention, as the end of a sentence; None if it can."""
    reason = why_not_exact()
    if reason is not None:
        return reason
    if not _has_processor(module):
        return f"{type(module).__name__} has no processor, as diffusers' modules have"
    processor: Any = module.processor
    own = type(processor).__name__
    if isinstance(processor, nn.Module):
        return f"its processor {own} is a module of its own"
    if not _calls(type(processor).__call__):
        return f"its processor {own} does not call F.scaled_dot_product_attention"
    backend = getattr(processor, "_attention_backend", None)
    if str(getattr(backend, "value", backend)) not in map(str, NATIVE):
        return f"its processor runs diffusers' attention backend {getattr(backend, 'value', backend)!r}"
    size = head_size(module)
    if size is not None and size % MULTIPLE:
        return f"takes heads of a multiple of {MULTIPLE} channels, and these have {size}"
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    return None if device == "cpu" else f"runs on the CPU, and the attention is on {device}"


def head_size(module: nn.Module) -> int | None:
    """Channels of a head, where the module says so."""
    size, inner, heads = (getattr(module, name, None) for name in ("head_dim", "inner_dim", "heads"))
    if isinstance(size, int):
        return size
    return inner // heads if isinstance(inner, int) and isinstance(heads, int) else None


def set_attention_(module: nn.Module, attention: Attention) -> None:
    """Let a module's attention be computed so; `why_not` has said that it can."""
    changed: Any = module
    processor = getattr(module, "processor", None)
    if isinstance(processor, KernelProcessor):
        processor = _filled(processor.inner, vars(processor))
        changed.set_processor(processor)
    if attention != TORCH:
        changed.set_processor(_processor(type(processor), attention == "int8", vars(processor)))


@contextmanager
def torchs(model: nn.Module) -> Iterator[None]:
    """Attention by torch meanwhile: what leaves the process has no kernel of ours."""
    before = [
        (module, module.processor)
        for module in model.modules()
        if isinstance(getattr(module, "processor", None), KernelProcessor)
    ]
    for module, _ in before:
        set_attention_(module, TORCH)
    try:
        yield
    finally:
        changed: Any
        for changed, processor in before:
            changed.set_processor(processor)


def _processor(inner: Any, codes: bool, state: dict[str, Any]) -> Any:
    return _filled(_with_kernel(inner, codes), state)


def _filled(kind: type[Any], state: dict[str, Any]) -> Any:
    made: Any = object.__new__(kind)
    vars(made).update(state)
    return made


@functools.lru_cache
def _with_kernel(inner: Any, codes: bool) -> type[Any]:
    """A class derived from a processor's, so that code which asks for its type or its arguments finds them."""
    call, functional = inner.__call__, Functional(codes)
    quick = with_functional(call, functional)

    @functools.wraps(call)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if quick is not None and not torch.compiler.is_compiling():  # compilers know a mode, and read it once
            before = functional.count
            made = quick(self, *args, **kwargs)
            seen = functional.count > before
        else:
            kernel = KernelAttention(codes)
            with kernel:
                made = call(self, *args, **kwargs)
            seen = kernel.seen
        if not seen:
            raise QuantizationError(
                f"{inner.__name__} computed attention without F.scaled_dot_product_attention, which the kernel takes; "
                "set diffusers' attention backend to 'native', or attention='torch'"
            )
        return made

    return type(inner.__name__, (KernelProcessor, inner), {"__call__": called, "codes": codes, "inner": inner})


def _has_processor(module: nn.Module) -> bool:
    return getattr(module, "processor", None) is not None and callable(getattr(module, "set_processor", None))


def _calls(function: Any) -> bool:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and not CALLED.isdisjoint(code.co_names)
