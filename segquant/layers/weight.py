"""The weight of a quantized layer, to those who read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from segquant.errors import QuantizationError

READ_ONLY = (
    "the weight of a quantized layer is made from its codes whenever it is read, so what is written to it would be "
    "lost; write it before quantize_, or leave the change beside the layer (an adapter that is not fused)"
)
JOINED = (
    "weights of quantized layers are not joined into a float layer (fuse_qkv_projections, fuse_projections); fuse "
    "before quantize_, or leave the projections apart"
)
_WRITERS = (Tensor.__setitem__, Tensor.data.__set__, Tensor.share_memory_)  # type: ignore[attr-defined]
_TRAINERS = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
# What looks behind a tensor's values.
_WHOLE = (
    Tensor.__array__, Tensor.__deepcopy__, Tensor.__dlpack__, Tensor.__reduce_ex__, Tensor.__repr__, Tensor.data_ptr,
    Tensor.numpy, Tensor.storage, Tensor.tolist, Tensor.untyped_storage,
)  # fmt: skip
_JOINS = (torch.ops.aten.cat.default, torch.ops.aten.stack.default)


class QuantWeight(Tensor):
    """A float weight without memory of its own: shape, dtype and device are there, values are made when read.

    Views are of the same kind. Writing raises QuantizationError; so does joining several `.data` (see `JOINED`), which
    is how models make float layers of quantized ones.
    """

    _make: Callable[[], Tensor]
    _is_data: bool

    @staticmethod
    def of(
        make: Callable[[], Tensor],
        shape: Sequence[int],
        stride: Sequence[int] | None,
        dtype: torch.dtype,
        device: torch.device,
        is_data: bool = False,
    ) -> QuantWeight:
        """Values of this shape, dtype and device from `make`."""
        weight: QuantWeight = Tensor._make_wrapper_subclass(
            QuantWeight, shape, strides=stride, dtype=dtype, device=device
        )
        weight._make, weight._is_data = make, is_data
        return weight

    def values(self) -> Tensor:
        """The weight as a tensor of its own."""
        return self._make()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        own = isinstance(args[0], QuantWeight) if args else False
        if own and (func in _WRITERS or (func in _TRAINERS and args[1:] != (False,))):
            raise QuantizationError(READ_ONLY)
        if own and func in _WHOLE:
            found = func(args[0].values(), *args[1:], **given)
            if isinstance(found, np.ndarray):
                found.flags.writeable = False
            return found
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **given)
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            found._is_data = True
        return found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        named = zip(func._schema.arguments, args, strict=False)
        by_name = {argument.name: argument for argument in func._schema.arguments}
        for argument, value in [*named, *((by_name[name], value) for name, value in given.items())]:
            if argument.is_write and any(isinstance(leaf, QuantWeight) for leaf in tree_leaves(value)):
                raise QuantizationError(READ_ONLY)
        weights = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, QuantWeight)]
        if func in _JOINS and any(weight._is_data for weight in weights):
            raise QuantizationError(JOINED)

        def real() -> Any:
            return func(*_unwrapped(args), **_unwrapped(given))

        if not func.is_view:
            return real()
        shapes = func(*_shapes(args), **_shapes(given))
        if isinstance(shapes, Tensor):
            return weights[0]._view(real, shapes)
        return [weights[0]._view(partial(_entry, real, index), shape) for index, shape in enumerate(shapes)]

    def _view(self, make: Callable[[], Tensor], shape: Tensor) -> QuantWeight:
        return QuantWeight.of(make, shape.shape, shape.stride(), shape.dtype, self.device, self._is_data)


def _entry(make: Callable[[], Sequence[Tensor]], index: int) -> Tensor:
    return make()[index]


def _unwrapped(value: Any) -> Any:
    return tree_map_only(QuantWeight, QuantWeight.values, value)


def _shapes(value: Any) -> Any:
    """The arguments with weights on the meta device."""
    return tree_map_only(
        QuantWeight, lambda w: torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device="meta"), value
    )
