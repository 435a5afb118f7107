"""A denoiser, and another beside it, that take the rows of a call in parts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from segquant.keep import Keeper
from segquant_bench.pipelines.sampling.generate import bound_inputs, first_tensor

OWN, BESIDE = "own", "beside"


@contextmanager
def in_parts(
    denoiser: torch.nn.Module,
    batch_size: int,
    prompts: int,
    shared: Collection[str] = (),
    beside: torch.nn.Module | None = None,
    on_pair: Callable[[tuple[Tensor, Tensor]], None] | None = None,
    keep: Keeper | None = None,
) -> Iterator[None]:
    """Within the block the denoiser takes its rows `batch_size` of `prompts` at a time.

    `shared` names inputs without rows (`shared_inputs`). `beside` sees the same parts; `on_pair` gets both outputs.
    Parts that a run before had finished come from `keep`.
    """
    forward, numbers = denoiser.forward, itertools.count()

    @functools.wraps(forward)
    def parted(*args: Any, **kwargs: Any) -> Any:
        inputs, number = bound_inputs(denoiser, args, kwargs), next(numbers)
        total = _rows(inputs)
        size = batch_size * max(1, total // prompts)
        found, like = [], ""
        for start in range(0, total, size):
            part = _cut(inputs, total, slice(start, start + size), shared)
            name = f"call {number}, rows {start}"
            known = None if keep is None else keep.get(name)
            if known is None:
                output = forward(**part)
                tensors, like = {OWN: first_tensor(output)}, _kind(output)
                if beside is not None:
                    tensors[BESIDE] = first_tensor(beside(**part))
                if keep is not None and like:
                    keep.put(name, tensors, like)
            else:
                device = next(_tensors(part)).device
                tensors, like = {key: value.to(device) for key, value in known.tensors.items()}, known.about
                output = None
            found.append(tensors)
        whole = torch.cat([tensors[OWN] for tensors in found])
        if on_pair is not None:
            on_pair((whole, torch.cat([tensors[BESIDE] for tensors in found])))
        return _like(like, output, whole)

    denoiser.forward = parted
    try:
        yield
    finally:
        del denoiser.forward


def _rows(value: Any) -> int:
    return next(item.shape[0] for item in _tensors(value) if item.ndim > 1)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _cut(value: Any, total: int, rows: slice, shared: Collection[str], name: str = "") -> Any:
    if isinstance(value, Mapping):
        start = f"{name}/" if name else ""
        return {key: _cut(item, total, rows, shared, f"{start}{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut(item, total, rows, shared, f"{name}/[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == total and name not in shared:
        return value[rows]
    return value


def _kind(output: Any) -> str:
    """How an output without anything but the prediction holds it; "" of others, which are not kept."""
    if isinstance(output, Tensor):
        return "tensor"
    if isinstance(output, tuple):
        return "tuple" if len(output) == 1 else ""
    return "sample"


def _like(kind: str, output: Any, values: Tensor) -> Any:
    """The prediction as the denoiser gave it: in the place of that of an `output`, if there is one."""
    if kind == "tensor":
        return values
    if kind == "tuple" or isinstance(output, tuple):
        return (values, *(output or (None,))[1:])
    if output is not None:
        return type(output)(sample=values)
    # put off: diffusers, which runs that fit nothing do without
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=values)  # what pipelines read of any denoiser's output is `sample`, or [0]
