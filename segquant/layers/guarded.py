"""What a quantized layer hands out, such that writing to it is seen or refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from segquant.errors import QuantizationError
from segquant.modules.tensors import version_of


def refuse_reparametrized(name: str) -> NoReturn:
    raise QuantizationError(
        f"a quantized layer has no parameter {name!r}: it computes with codes and scales, which are buffers, and "
        "cannot be normalized, reparametrized or pruned (weight_norm, spectral_norm, prune …); do that before quantize_"
    )


class Parameters(dict[str, Any]):
    """The parameters of a quantized layer; torch's older utilities take the float weight out of there."""

    def __missing__(self, name: str) -> NoReturn:
        refuse_reparametrized(name)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            refuse_reparametrized(name)
        super().__delitem__(name)


class Handed(Tensor):
    """A buffer's memory, handed out: what is written to it, by `.data` or a view too, is seen by the layer.

    A tensor's own `.data` does not count writes, and compiled code does not look at the count.
    """

    _forget: Callable[[], object]

    @staticmethod
    def of(buffer: Tensor, forget: Callable[[], object]) -> Tensor:
        """`forget` is called after every write; a tensor that is not a plain one is returned as it is."""
        return _handed(buffer.detach(), forget) if type(buffer) is Tensor else buffer

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        handed = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Handed)]
        with torch._C.DisableTorchFunctionSubclass():
            before = [version_of(tensor) for tensor in handed]
            if func == Tensor.data.__get__:  # type: ignore[attr-defined]
                func = Tensor.detach  # which shares the count
            if func == Tensor.data.__set__:  # type: ignore[attr-defined]
                func = _write_whole
            found = func(*args, **given)
            for tensor, version in zip(handed, before, strict=True):
                if version_of(tensor) != version:
                    tensor._forget()
            if isinstance(found, np.ndarray):
                found.flags.writeable = False
            return tree_map_only(Tensor, partial(_still_handed, handed), found)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = plain_of(self).clone()
        return cast(Tensor, memo[id(self)])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain_of(self).__reduce_ex__(protocol)

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return str(plain_of(self).__repr__(**kwargs))


def _handed(alias: Tensor, forget: Callable[[], object]) -> Handed:
    alias.__class__ = Handed
    found = cast(Handed, alias)
    found._forget = forget
    return found


def plain_of(tensor: Tensor) -> Tensor:
    """The same memory as a tensor like any other."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach()


def _still_handed(handed: list[Handed], found: Tensor) -> Tensor:
    """What an operation gave, handed out too if it has the memory of one of `handed`."""
    if type(found) is not Tensor or found.layout is not torch.strided:
        return found
    for tensor in handed:
        if tensor.untyped_storage()._cdata == found.untyped_storage()._cdata:
            return _handed(found, tensor._forget)
    return found


def _write_whole(buffer: Tensor, value: Any) -> None:
    given = _kind(value) if isinstance(value, Tensor) else type(value).__name__
    if given != _kind(buffer):
        raise QuantizationError(
            f".data of a quantized layer's buffer is {_kind(buffer)}, and {given} is given; assign a tensor to the "
            "buffer itself, or quantize the changed float layer"
        )
    with torch.no_grad():
        buffer.copy_(value)


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
