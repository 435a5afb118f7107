"""Torch's ambient state: what a caller set around the library must not change its numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from segquant.errors import QuantizationError

DEVICES = ("cpu", "cuda", "mps", "xpu", "mtia", "privateuseone")
"""Kinds of device that autocast may be on for."""
SEED = 0
"""Of the random numbers that a model draws while it is observed or measured."""
_BACKENDS: Any = torch.backends
PRECISIONS = (_BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul)
"""Where torch keeps how exactly it multiplies float32 matrices."""
EXACT = "ieee"
_LOCK = threading.Lock()
_INSIDE: dict[str, Any] = {"count": 0, "before": ()}


@contextmanager
def own_state() -> Iterator[None]:
    """Inside: no gradients, inference mode or autocast, exact float32 products, no meta default device.

    Also a decorator.
    """
    if torch.compiler.is_compiling():  # which cannot be told of all this; a layer's own product sees to autocast
        yield
        return
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type == "meta":  # tensors without values: no forward runs on them
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_exact_products())
        yield


@contextmanager
def _exact_products() -> Iterator[None]:
    """Settings of all threads: the first to come in stores them, the last one out restores them."""
    with _LOCK:
        if not _INSIDE["count"]:
            _INSIDE["before"] = tuple((place, place.fp32_precision) for place in PRECISIONS)
            _set((place, EXACT) for place, value in _INSIDE["before"] if value not in (EXACT, "none"))
        _INSIDE["count"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE["count"] -= 1
            if not _INSIDE["count"]:
                _set((place, value) for place, value in _INSIDE["before"] if value not in (EXACT, "none"))


def _set(values: Iterable[tuple[Any, str]]) -> None:
    for place, value in values:
        place.fp32_precision = value


@contextmanager
def own_random(model: nn.Module) -> Iterator[None]:
    """Inside, torch's generators start from SEED; afterwards they are the caller's again."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(SEED)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(SEED)
        yield


@contextmanager
def building() -> Iterator[None]:
    """Inside, a model is built in float32 on the CPU, whatever the defaults, without the caller's random numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.random.fork_rng([]):
            yield
    finally:
        torch.set_default_dtype(before)


def outside_inference() -> AbstractContextManager[Any]:
    """Inside, inference mode is off: autograd refuses its tensors."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def outside_autocast(device: torch.device) -> AbstractContextManager[Any]:
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)  # which knows no autocast
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def exact_products(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products of this device's float32 tensors are float32's, whatever the caller lets torch round."""
    if torch.compiler.is_compiling() or all(place.fp32_precision in (EXACT, "none") for place in PRECISIONS):
        return outside_autocast(device)
    stack = ExitStack()
    stack.enter_context(outside_autocast(device))
    stack.enter_context(_exact_products())
    return stack


def check_seed(seed: int) -> None:
    """QuantizationError for a seed that torch's generators do not take."""
    if not -(2**63) <= seed < 2**63:
        raise QuantizationError(f"seed={seed} does not fit in 64 bits; give a smaller one")


def normal(tensor: Tensor) -> Tensor:
    """The tensor; of one made in inference mode, which autograd and in-place changes refuse, a copy."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


@contextmanager
def normal_weights(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter or buffer is an inference tensor."""
    undo: list[tuple[dict[str, Any], str, Tensor]] = []
    made: dict[int, Tensor] = {}
    for module in model.modules():
        tables: tuple[Any, ...] = (module._parameters, module._buffers)
        for held in tables:
            for key, tensor in held.items():
                if tensor is not None and tensor.is_inference():
                    undo.append((held, key, tensor))
                    if id(tensor) not in made:
                        copied = tensor.clone()
                        made[id(tensor)] = nn.Parameter(copied, False) if held is module._parameters else copied
    for held, key, tensor in undo:
        held[key] = made[id(tensor)]
    try:
        yield
    finally:
        for held, key, tensor in undo:
            held[key] = tensor
