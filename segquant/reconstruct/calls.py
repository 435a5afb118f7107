"""Calls of modules inside a model, on some calibration items."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from segquant.errors import QuantizationError
from segquant.modules.calls import call


@dataclass(frozen=True)
class Call:
    """One call of a module: detached copies of its arguments and result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nest of dicts, lists and tuples with `function` applied to its tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(entry, function) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [map_tensors(entry, function) for entry in value]
        if isinstance(value, list):
            return entries
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value


def copied(value: Any) -> Any:
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def tensors_in(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(dict(value) if isinstance(value, Mapping) else value, note)
    return found


def items_of(value: Any) -> int:
    """Leading dimension of a nest's first tensor that has more than one; 1 without any."""
    return next((tensor.shape[0] for tensor in tensors_in(value) if tensor.dim() > 1), 1)


_READ_TWICE = (
    "block reconstruction reads the calibration batches a second time and would find none; give batches that can be "
    "gone through repeatedly (a list, not a generator)"
)


def require_repeatable(batches: Iterable[Any]) -> None:
    """QuantizationError if `batches` can be gone through only once."""
    if iter(batches) is batches:
        raise QuantizationError(_READ_TWICE)


def keep_batches(batches: Iterable[Any], items: int, seed: int) -> list[Any]:
    """Copies of whole batches, drawn uniformly until there are `items` items; QuantizationError if there are none."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[float, int, int, Any]] = []
    for index, batch in enumerate(batches):
        key = float(torch.rand((), generator=generator, dtype=torch.float64, device="cpu"))
        heapq.heappush(kept, (key, index, items_of(batch), copied(batch)))
        while sum(entry[2] for entry in kept) - kept[0][2] >= items:
            heapq.heappop(kept)
    if not kept:
        raise QuantizationError(_READ_TWICE)
    return [entry[3] for entry in sorted(kept, key=lambda entry: entry[1])]


def call_order(model: nn.Module, batches: Sequence[Any], wanted: Collection[int]) -> dict[int, int]:
    """Position of every called module, by id; runs batches until all `wanted` are met."""
    order: dict[int, int] = {}

    def note(module: nn.Module, _: Any) -> None:
        order.setdefault(id(module), len(order))

    for batch in batches:
        _run(model, [batch], [module.register_forward_pre_hook(note) for module in model.modules()])
        if all(key in order for key in wanted):
            break
    return order


def collect_calls(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Sequence[Any], memory_limit: int | None = None
) -> dict[str, list[Call]]:
    """Calls of the first of `modules` (at least one, within `memory_limit` bytes) over all batches, by name."""
    first = _record(model, modules, batches[:1])
    fitting, total = list(modules), 0
    if memory_limit is not None:
        for index, calls in enumerate(first.values()):
            total += len(batches) * sum(_bytes((c.args, c.kwargs, c.output)) for c in calls)
            if index and total > memory_limit:
                fitting = fitting[:index]
                break
    rest = _record(model, {name: modules[name] for name in fitting}, batches[1:])
    return {name: first[name] + rest[name] for name in fitting}


def _bytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))


def _record(model: nn.Module, modules: Mapping[str, nn.Module], batches: Sequence[Any]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {name: [] for name in modules}
    _run(model, batches, [handle for name, module in modules.items() for handle in _hooks(module, found[name])])
    return found


def _run(model: nn.Module, batches: Sequence[Any], handles: list[RemovableHandle]) -> None:
    try:
        with torch.no_grad():
            for batch in batches:
                call(model, copied(batch))
    finally:
        for handle in handles:
            handle.remove()


def _hooks(module: nn.Module, calls: list[Call]) -> list[RemovableHandle]:
    pending: list[tuple[Any, Any]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending.append((copied(args), copied(kwargs)))

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(Call(*pending.pop(), copied(output)))

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
