"""Run one block of a model on kept inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from segquant.errors import QuantizationError
from segquant.modules.calls import call, run
from segquant.modules.swap import evaluating
from segquant.modules.tensors import tensors_of, version_of


class BlockRunner(nn.Module):
    """A block under its dotted name, called by batch number on `inputs`; keeps its outputs."""

    def __init__(self, name: str, block: nn.Module, inputs: list[Any]) -> None:
        super().__init__()
        *path, last = name.split(".")
        parent: nn.Module = self
        for part in path:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, block)
        self._name, self._inputs = name, inputs
        self.outputs: list[Any] = [None] * len(inputs)
        self._filled = [False] * len(inputs)
        self.eval()

    def forward(self, index: int) -> Any:
        args, kwargs = self._inputs[index]
        before = [version_of(tensor) for tensor in tensors_of((args, kwargs))]
        output = run(self.get_submodule(self._name), args, kwargs)
        if before != [version_of(tensor) for tensor in tensors_of((args, kwargs))]:
            raise QuantizationError(
                f"{self._name} changes its inputs in place, so it cannot be run again on them; let it stay in memory "
                f"(keep={self._name})"
            )
        if not self._filled[index]:
            self.outputs[index], self._filled[index] = output, True
        return output

    def fill(self) -> None:
        """Run the block on all inputs not seen yet."""
        for index, filled in enumerate(self._filled):
            if not filled:
                self(index)


class BatchIndices:
    """Batch numbers as batches of a `BlockRunner`, with the real ones' origins."""

    def __init__(self, count: int, origins: Sequence[Any] | None) -> None:
        self._count = count
        if origins is not None:
            self.origins = origins

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int]]:
        return ((index,) for index in range(self._count))


def stray_blocks(model: nn.Module, names: Sequence[str], batch: Any) -> list[str]:
    """Blocks not called exactly once, or with parts called from elsewhere, in a run on `batch`."""
    calls: Counter[str] = Counter()
    inside: list[str] = []
    strays: set[str] = set()

    def enter(block: str, is_block: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if is_block:
                calls[block] += 1
                inside.append(block)
            elif block not in inside:
                strays.add(block)

        return hook

    def leave(*_: Any) -> None:
        inside.pop()

    handles = []
    for name in names:
        for path, module in model.get_submodule(name).named_modules():
            handles.append(module.register_forward_pre_hook(enter(name, not path)))
            if not path:
                handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with evaluating(model), torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in names if calls[name] != 1 or name in strays]
