"""Hooks that keep a block's parameters in memory only while it runs.

A block is an entry of an outermost nn.ModuleList. Everything else stays in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from segquant.errors import QuantizationError

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Names of dtypes in safetensors files, and torch's."""
Weights = Callable[[Collection[str]], dict[str, Tensor]]
"""Gives the parameters and buffers of these names, on any device, in any dtype."""


def blocks(model: nn.Module, keep: Collection[str] = ()) -> dict[str, nn.Module]:
    """Blocks with parameters, by name, in order; without `keep`."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{block}.") for block in found):
            entries = ((f"{name}.{key}" if name else key, child) for key, child in module.named_children())
            found.update((key, child) for key, child in entries if next(child.parameters(), None) is not None)
    return {name: module for name, module in found.items() if name not in keep}


class FileWeights:
    """Tensors of safetensors files, read one by one, never mapped.

    Args:
        files: with distinct tensor names.

    Raises:
        QuantizationError: no files, or not safetensors.
    """

    def __init__(self, files: Collection[Path]) -> None:
        if not files:
            raise QuantizationError("there are no safetensors files to read weights from; give at least one")
        self._places: dict[str, tuple[Path, int, torch.dtype, tuple[int, ...]]] = {}
        for path in files:
            self._places.update((entry[0], (path, *entry[1:])) for entry in _entries(path))

    def check(self, names: Iterable[str]) -> None:
        """Raise QuantizationError if a tensor is missing."""
        missing = [name for name in names if name not in self._places]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise QuantizationError(f"the weight files lack {missing[0]}{more}; give those of this very architecture")

    def __call__(self, names: Collection[str]) -> dict[str, Tensor]:
        self.check(names)
        found: dict[str, Tensor] = {}
        for path in dict.fromkeys(self._places[name][0] for name in names):
            with path.open("rb", buffering=0) as file:
                for name in names:
                    place, start, dtype, shape = self._places[name]
                    if place == path:
                        found[name] = _read(file, start, dtype, shape)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._places


def _entries(path: Path) -> Iterator[tuple[str, int, torch.dtype, tuple[int, ...]]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length >= path.stat().st_size:
                raise ValueError(f"a header of {length} bytes does not fit into it")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                dtype = getattr(torch, DTYPES[entry["dtype"]])
                yield name, 8 + length + _start(entry, dtype.itemsize), dtype, tuple(entry["shape"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise QuantizationError(f"{path} is no readable safetensors file ({error}); fetch it again") from error


def _start(entry: Any, itemsize: int) -> int:
    """Where a tensor begins; ValueError if its bytes are not those of its shape."""
    (start, end), shape = entry["data_offsets"], entry["shape"]
    numbers = [start, end, *shape]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("sizes that are no whole numbers")
    if end - start != math.prod(shape) * itemsize:
        raise ValueError(f"{end - start} bytes for a tensor of shape {shape}")
    return int(start)


def _read(file: FileIO, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    left = memoryview(cast(Any, tensor.reshape(-1).view(torch.uint8).numpy()))
    file.seek(start)
    while left:
        count = file.readinto(left)
        if not count:
            raise QuantizationError(f"{file.name} ends too early; fetch it again")
        left = left[count:]
    return tensor


class Offloaded:
    """A model whose blocks have their parameters in memory only while they run.

    A block's submodule called from outside brings in what it holds. Blocks are in `waiting` until `keep`.

    Args:
        model: parameters may be meta; buffers are real.
        weights: where parameters are read.
        device: where the model runs.
        keep: blocks that stay in memory.

    Raises:
        QuantizationError: a weight is missing or of another shape; no block.
    """

    def __init__(
        self, model: nn.Module, weights: Weights, device: torch.device | str = "cpu", keep: Collection[str] = ()
    ) -> None:
        self.model, self.weights, self.device = model, weights, torch.device(device)
        self.waiting = blocks(model, keep)
        if not self.waiting:
            kind = type(model).__name__
            raise QuantizationError(
                f"{kind} has no block (entry of an nn.ModuleList) that could leave memory; load it whole"
            )
        self._holder: dict[str, nn.Module] = {}
        self._handles: dict[str, list[Any]] = {}
        self._meta: dict[int, nn.Parameter] = {}
        for name, block in self.waiting.items():
            self._release(block)
            self._handles[name] = list(self._hooked(name, block))
        inside = {id(part) for block in self.waiting.values() for part in block.modules()}
        self._bring("", model, {id(part) for part in model.modules()} - inside)
        for part in model.modules():
            part._buffers.update({k: v.to(self.device) for k, v in part._buffers.items() if v is not None})

    def _hooked(self, name: str, block: nn.Module) -> Iterator[Any]:
        """The first one called brings in what it holds, and takes it out."""

        def enter(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, *_: Any) -> None:
                if name not in self._holder:
                    self._holder[name] = module
                    self._bring(path, module)

            return hook

        def leave(module: nn.Module, *_: Any) -> None:
            if self._holder.get(name) is module:
                del self._holder[name]
                self._release(module)

        for path, module in block.named_modules(prefix=name):
            if next(module.parameters(), None) is not None:
                yield module.register_forward_pre_hook(enter(path))
                yield module.register_forward_hook(leave, always_call=True)

    def bring(self, name: str) -> nn.Module:
        """A block, in memory until `keep` or `release`, its hooks idle."""
        block = self.waiting[name]
        self._holder[name] = self.model  # no module of the block, so that no hook takes it out
        self._bring(name, block)
        return block

    def release(self, name: str) -> None:
        """Take out a block that `bring` brought in."""
        self._holder.pop(name, None)
        self._release(self.waiting[name])

    def keep(self, name: str) -> None:
        """Make a block an ordinary module."""
        for handle in self._handles.pop(name):
            handle.remove()
        self._holder.pop(name, None)
        for parameter in self.waiting.pop(name).parameters():
            self._meta.pop(id(parameter), None)

    def _bring(self, prefix: str, module: nn.Module, only: Collection[int] | None = None) -> None:
        places = [
            (part, key, f"{path}.{key}" if path else key)
            for path, part in module.named_modules(prefix=prefix, remove_duplicate=False)
            if only is None or id(part) in only
            for key, parameter in part._parameters.items()
            if parameter is not None and parameter.device.type == "meta"
        ]
        found = self.weights(list(dict.fromkeys(full for *_, full in places)))
        made: dict[int, nn.Parameter] = {}
        for part, key, full in places:
            old = part._parameters[key]
            if id(old) not in made:
                made[id(old)] = self._made(full, old, found[full])
                self._meta[id(made[id(old)])] = old
            part._parameters[key] = made[id(old)]

    def _made(self, name: str, old: nn.Parameter, tensor: Tensor) -> nn.Parameter:
        if tensor.shape != old.shape:
            raise QuantizationError(
                f"{name} has shape {list(old.shape)} in the model and {list(tensor.shape)} in the weight files; give "
                "those of this very architecture"
            )
        return nn.Parameter(tensor.to(self.device, old.dtype), requires_grad=False)

    def _release(self, module: nn.Module) -> None:
        empty: dict[int, nn.Parameter] = {}
        for part in module.modules():
            for key, parameter in part._parameters.items():
                if parameter is not None and parameter.device.type != "meta":
                    if id(parameter) not in empty:
                        known = self._meta.pop(id(parameter), None)
                        empty[id(parameter)] = _empty(parameter) if known is None else known
                    part._parameters[key] = empty[id(parameter)]


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
