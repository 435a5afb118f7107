"""Attention by the CPU's kernel in place of `F.scaled_dot_product_attention`, inside a block of code alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf
from torch.overrides import TorchFunctionMode

from segquant.kernels.cpu import operators

MULTIPLE = 4
"""Of which a head's size must be a multiple."""
DTYPES = (torch.float32, torch.bfloat16)
TORCHS = "calls with a mask, causal order, dropout or fewer heads of keys stay torch's"
"""What `takes` leaves to torch, as a table says it."""


class KernelAttention(TorchFunctionMode):
    """Calls of `F.scaled_dot_product_attention` of this thread, while it is entered, run by the kernel.

    Args:
        codes: products of 8-bit codes, else of floats.

    Attributes:
        seen: whether there was a call.
    """

    def __init__(self, codes: bool) -> None:
        super().__init__()
        self.codes, self.seen = codes, False

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is not nnf.scaled_dot_product_attention:
            return func(*args, **given)
        self.seen = True
        return attend(*args, codes=self.codes, **given)


class Functional:
    """`torch.nn.functional`, but for attention, which is the kernel's; counts its calls by thread."""

    def __init__(self, codes: bool) -> None:
        self._codes, self._local = codes, threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(nnf, name)

    @property
    def count(self) -> int:
        return getattr(self._local, "count", 0)

    def scaled_dot_product_attention(self, *args: Any, **kwargs: Any) -> Tensor:
        self._local.count = self.count + 1
        return attend(*args, codes=self._codes, **kwargs)

    def dispatching(self, dispatch: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """diffusers' `dispatch_attention_fn` with the kernel inside."""

        def dispatched(*args: Any, **kwargs: Any) -> Tensor:
            kernel = KernelAttention(self._codes)
            with kernel:
                made = dispatch(*args, **kwargs)
            self._local.count = self.count + kernel.seen
            return made

        return dispatched


def with_functional(function: Any, functional: Functional) -> Callable[..., Any] | None:
    """The function with `functional` where it reads `F`; None where it finds attention in another way.

    In a mode every operation of a processor passes through Python, which on small models costs more than attention.
    """
    code = getattr(function, "__code__", None)
    if code is None or hasattr(function, "__wrapped__") or "functional" in code.co_names:
        return None
    known: dict[str, Any] = function.__globals__
    own: dict[str, Any] = {}
    if "scaled_dot_product_attention" in code.co_names and known.get("F") is nnf:
        own["F"] = functional
    if "dispatch_attention_fn" in code.co_names and "dispatch_attention_fn" in known:
        own["dispatch_attention_fn"] = functional.dispatching(known["dispatch_attention_fn"])
    if not own:
        return None
    made = FunctionType(code, {**known, **own}, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    codes: bool,
) -> Tensor:
    """As `F.scaled_dot_product_attention`, which computes what the kernel does not take; see `takes`."""
    if attn_mask is not None or dropout_p or is_causal or not takes(query, key, value):
        return nnf.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    by = float(query.shape[-1]) ** -0.5 if scale is None else scale
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        made: Tensor = _WithGradient.apply(q, k, v, by, codes)
        return made
    return operators.attention(q, k, v, by, codes)


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes such tensors: [batch, heads, tokens, size], float32 or bfloat16, on the CPU."""
    if query.dim() != 4 or key.dim() != 4 or value.shape != key.shape:
        return False
    fits = query.shape[:2] == key.shape[:2] and query.shape[-1] == key.shape[-1] and key.shape[-2] > 0
    kinds = {each.dtype for each in (query, key, value)}
    on_cpu = all(each.device.type == "cpu" for each in (query, key, value))
    return fits and on_cpu and query.shape[-1] % MULTIPLE == 0 and len(kinds) == 1 and query.dtype in DTYPES


class _WithGradient(torch.autograd.Function):
    """The kernel's output, with the gradient of attention in float32: rounding has none."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, codes: bool) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return operators.attention(q, k, v, scale, codes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v = (each.float() for each in ctx.saved_tensors)
        wide, kind = gradient.float(), gradient.dtype
        weights = (q @ k.mT * ctx.scale).softmax(-1)
        inner = wide @ v.mT
        scores = weights * (inner - (inner * weights).sum(-1, keepdim=True)) * ctx.scale
        return (scores @ k).to(kind), (scores.mT @ q).to(kind), (weights.mT @ wide).to(kind), None, None
