"""Gram matrices XᵀX within a memory limit; linears share one until their inputs differ."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segquant.modules.tensors import version_of
from segquant.observers.stats import FOLDS

FLUSH = 4096
"""Rows that are summed in float32 before they go to float64; a product of a call that has more does the same."""
FEW_ROWS = 64
"""Inputs of at most so many rows are recognised by value too: blocks that each take SiLU of one embedding."""
ENTRY_BYTES = 12
"""Of one matrix entry: the float64 sum and the float32 one that goes into it."""


@dataclass
class Sum:
    """Σ xᵀx: float64, and float32 for the last `waiting` rows."""

    total: Tensor | None = None
    pending: Tensor | None = None
    waiting: int = 0

    def add(self, rows: Tensor) -> None:
        """Take in rows [n, in]."""
        values = rows.float()
        if self.pending is None:
            self.pending = values.T @ values
        else:
            self.pending.addmm_(values.T, values)
        self.waiting += len(rows)
        if self.waiting >= FLUSH:
            self._flush()

    def copy(self) -> Sum:
        total, pending = (None if part is None else part.clone() for part in (self.total, self.pending))
        return Sum(total, pending, self.waiting)

    def value(self) -> Tensor | None:
        """XᵀX, float64 [in, in], None before the first row; add nothing afterwards."""
        self._flush()
        return self.total

    def _flush(self) -> None:
        if self.pending is not None:
            self.total = self.pending.double() if self.total is None else self.total.add_(self.pending)
        self.pending, self.waiting = None, 0


@dataclass
class _State:
    """Sums over all rows and fold 0's, for `members` linears; `call` made it."""

    number: int
    call: int
    whole: Sum = field(default_factory=Sum)
    first: Sum = field(default_factory=Sum)
    members: int = 0


class Grams:
    """Gram matrices of some linears' inputs during one reading.

    Args:
        widths: input features by linear.
        limit: bytes; linears without room are deferred. None: no limit. A call may take one matrix more.
        split: sum fold 0 apart too.
    """

    def __init__(self, widths: Mapping[str, int], limit: int | None = None, split: bool = False) -> None:
        self.widths, self.limit, self.split = widths, limit, split
        self.deferred: set[str] = set()
        self._root = _State(0, 0)
        self._at: dict[str, _State] = {}
        self._numbers = itertools.count(1)
        self._call = 0
        self._moves: dict[tuple[int, int], _State] = {}
        self._tokens = _Tokens()
        self._used = 0

    def begin_call(self) -> None:
        """Call before every forward pass."""
        self._moves, self._tokens = {}, _Tokens()
        self._call += 1

    def update(self, name: str, x: Tensor, fold: int | None) -> None:
        if name in self.deferred or not x.numel():
            return
        state = self._at.get(name, self._root)
        rows = x.detach().reshape(-1, x.shape[-1])
        step = (state.number, self._tokens.number(x))
        following = self._moves.get(step)
        if following is None and state.members == 1 and state.call < self._call:
            # the last one here, and nobody can join any more: the sum itself may grow
            state.number, state.call = next(self._numbers), self._call
            self._add(state, rows, fold)
            return
        if following is None:
            if state is self._root and not self._admit(name):
                return
            following = _State(next(self._numbers), self._call, state.whole.copy(), state.first.copy())
            self._add(following, rows, fold)
            self._moves[step] = following
        state.members -= 1
        following.members += 1
        self._at[name] = following

    def sums(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """XᵀX over all rows and (if split) fold 0's, handed over; None without rows."""
        self._moves = {}
        state = self._at.pop(name, self._root)
        return state.whole.value(), state.first.value()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` takes, between two calls; matrices that linears share are in it once."""
        states = {state.number: state for state in self._at.values()}
        tensors, known = dict[str, Tensor](), dict[str, list[int]]()
        for number, state in states.items():
            known[str(number)] = [state.members, state.whole.waiting, state.first.waiting]
            for side, part in (("whole", state.whole), ("first", state.first)):
                found = {"total": part.total, "pending": part.pending}
                tensors |= {f"{number}/{side}/{key}": value for key, value in found.items() if value is not None}
        places = {name: state.number for name, state in self._at.items()}
        return tensors, {"states": known, "at": places, "deferred": sorted(self.deferred)}

    def restore(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], only: Collection[str]) -> None:
        """Take over what `state` gave of these linears, in the place of what is here."""
        states = {int(key): _restored(int(key), entry, tensors) for key, entry in about["states"].items()}
        self.deferred = {name for name in about["deferred"] if name in only}
        for name, number in about["at"].items():
            if name in only:
                self._at[name] = states[number]
            else:
                states[number].members -= 1  # of one that is solved: the others have the sum to themselves
        self._numbers = itertools.count(max(states, default=0) + 1)
        self._used = sum(self.matrix_bytes(self.widths[name]) for name in self._at)

    def matrix_bytes(self, width: int) -> int:
        """Bytes that a linear takes while data is read."""
        return ENTRY_BYTES * width * width * (2 if self.split else 1)

    def _admit(self, name: str) -> bool:
        size = self.matrix_bytes(self.widths[name])
        if self.limit is not None and self._used + size > self.limit:
            self.deferred.add(name)
            return False
        self._used += size
        return True

    def _add(self, state: _State, rows: Tensor, fold: int | None) -> None:
        state.whole.add(rows)
        if self.split and not fold:
            state.first.add(rows.tensor_split(FOLDS)[0] if fold is None else rows)


def _restored(number: int, entry: Sequence[int], tensors: Mapping[str, Tensor]) -> _State:
    members, *waiting = entry
    whole, first = (
        Sum(tensors.get(f"{number}/{side}/total"), tensors.get(f"{number}/{side}/pending"), rows)
        for side, rows in zip(("whole", "first"), waiting, strict=True)
    )
    return _State(number, 0, whole, first, members)


class _Tokens:
    def __init__(self) -> None:
        self._count = 0
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._small: list[tuple[Tensor, int, int]] = []

    def number(self, x: Tensor) -> int:
        """The same number for the same unchanged tensor, or equal ones of few rows."""
        known = self._known.get(id(x))
        if known is not None and known[0]() is x and known[1] == version_of(x):
            return known[2]
        number = self._equal(x)
        if number is None:
            number, self._count = self._count, self._count + 1
            if _is_small(x):
                self._small.append((x, version_of(x), number))
        self._known[id(x)] = (weakref.ref(x), version_of(x), number)
        return number

    def _equal(self, x: Tensor) -> int | None:
        if not _is_small(x):
            return None
        for other, version, number in self._small:
            alike = other.shape == x.shape and other.dtype == x.dtype and other.device == x.device
            if alike and version == version_of(other) and torch.equal(other, x):
                return number
        return None


def _is_small(x: Tensor) -> bool:
    return x.numel() <= FEW_ROWS * x.shape[-1]
