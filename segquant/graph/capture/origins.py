"""Which arguments a tensor comes from, which values were read, what failed."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segquant.graph.capture.copies import unreal

_TORCH = str(Path(torch.__file__).parent)
_READS = frozenset([torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__])
_LONGEST = 40
_INDEXING = frozenset(
    [
        torch.ops.aten.index.Tensor,
        torch.ops.aten.index_put.default,
        torch.ops.aten.index_put_.default,
        torch.ops.aten._unsafe_index.Tensor,
    ]
)


class ValuesNeeded(Exception):
    """A forward read a value of a fake tensor."""


@dataclass(frozen=True)
class Read:
    """A value that Python read: the graph holds for the example inputs alone."""

    place: str
    code: str
    value: str

    def __str__(self) -> str:
        return f"`{self.code}` ({self.place}) read {self.value}"


@dataclass(frozen=True)
class Failure:
    """The operator that raised, and the arguments it depends on."""

    error: BaseException
    operator: str
    shapes: tuple[tuple[int, ...], ...]
    names: frozenset[str]


@dataclass(frozen=True)
class _Origin:
    names: frozenset[str] = frozenset()
    hollow: bool = False  # values written to it were fake


_NOWHERE = _Origin()


@dataclass
class _Notes:
    reads: dict[tuple[str, str], Read] = field(default_factory=dict)
    failure: Failure | None = None


class Origins(TorchDispatchMode):
    """Follows tensors back to named arguments, by storage."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # A weak reference keeps the address from being used again, and the key true; it keeps no memory alive.
        self._known: dict[int, tuple[StorageWeakRef, _Origin]] = {}
        self.notes = _Notes()

    def name(self, tensor: Tensor, label: str) -> None:
        """Let `tensor` count as argument `label`."""
        self._note([tensor], _Origin(frozenset([label])))

    def names(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        return frozenset().union(*(self._origin(tensor).names for tensor in tensors))

    def read(self, tensor: Tensor, value: Callable[[], Any]) -> None:
        """Note that Python reads a tensor; refused where it has no values."""
        origin = self._origin(tensor)
        place, code = _caller()
        if unreal(tensor) or origin.hollow:
            raise ValuesNeeded(f"`{code}` ({place}) reads values that depend on weights or arguments without values")
        if origin.names:
            shown = str(value())
            shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} …"
            self.notes.reads.setdefault((place, code), Read(place, code, shown))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = [self._origin(tensor) for tensor in given]
        origin = _Origin(
            frozenset().union(*(entry.names for entry in known)),
            any(entry.hollow for entry in known) or any(map(unreal, given)),
        )
        if func is torch.ops.aten._local_scalar_dense.default:
            self.read(given[0], lambda: func(*args))
        elif func is torch.ops.aten.equal.default:  # `if torch.equal(a, b)`: the one other operator that returns a bool
            for tensor in given:
                self.read(tensor, lambda: func(*args))
        if func in _INDEXING and any(map(unreal, given)):
            args = (args[0], self._positions(args[1]), *args[2:])
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            shapes = tuple(tuple(tensor.shape) for tensor in given)
            self.notes.failure = Failure(error, str(func), shapes, origin.names)
            raise
        self._note((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), origin)
        schema = getattr(func, "_schema", None)  # operators that take functions, like flex_attention, have none
        if schema is not None and schema.is_mutable:
            self._note(_mutated(schema, args, kwargs), origin)
        return result

    def _positions(self, indices: Any) -> list[Any]:
        """Masks with values as the positions they select."""
        found: list[Any] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) and not unreal(index):
                self.read(index, index.tolist)
                found += index.nonzero(as_tuple=True)
            else:
                found.append(index)
        return found

    def _origin(self, tensor: Tensor) -> _Origin:
        key = _storage(tensor)
        return self._known[key][1] if key in self._known else _NOWHERE

    def _note(self, tensors: Iterable[Tensor], origin: _Origin) -> None:
        for tensor in tensors:
            before = self._origin(tensor)
            merged = _Origin(before.names | origin.names, before.hollow or origin.hollow)
            if merged != _NOWHERE:
                self._known[_storage(tensor)] = (StorageWeakRef(tensor.untyped_storage()), merged)


class Reads(TorchFunctionMode):
    """Tells `origins` of reads without an operator: tolist and numpy."""

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self._origins = origins

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            with torch._C.DisableTorchFunction():
                self._origins.read(args[0], lambda: torch.Tensor.tolist(args[0].detach()))
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _mutated(schema: Any, args: Any, kwargs: Any) -> Iterable[Tensor]:
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _caller() -> tuple[str, str]:
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith((_TORCH, "<")) or frame.f_code.co_filename == __file__
    ):
        frame = frame.f_back
    name, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(name).name}:{line}", linecache.getline(name, line).strip() or "?"
