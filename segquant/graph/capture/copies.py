"""Copies of a model and its example inputs, to run freely."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from segquant.errors import QuantizationError

CUTTABLE = (nn.Linear, nn.Conv2d)
"""The layers that segments are found for."""
SMALL = 2**20
"""Elements up to which a recorded copy keeps a buffer's values: tables that a forward may look up."""
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_ACCELERATE = ("_hf_hook", "forward")
"""Where a module has accelerate's hook, which knows other models, and a forward that moves weights about."""
_OLD = "_old_forward"
"""Where accelerate keeps the forward that it replaced."""


def unreal(tensor: Tensor) -> bool:
    """Whether a tensor has no values."""
    return tensor.device.type == "meta" or isinstance(tensor, FakeTensor)


def device_of(model: nn.Module, example: Any) -> torch.device:
    """The first device that is not meta."""
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(example)]
    return next((t.device for t in tensors if t.device.type != "meta"), torch.device("cpu"))


def fake(tensor: Tensor, fake_mode: FakeTensorMode, device: torch.device) -> Tensor:
    with fake_mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def fake_copy(model: nn.Module, fake_mode: FakeTensorMode, device: torch.device, *, values: bool = False) -> nn.Module:
    """A copy with fake weights, without hooks but those that make a weight.

    Args:
        values: keep the values of buffers of at most `SMALL` elements.
    """

    def buffer(tensor: Tensor) -> Tensor:
        kept = values and not unreal(tensor) and tensor.numel() <= SMALL
        return tensor.detach().clone() if kept else fake(tensor, fake_mode, device)

    def weight(tensor: Tensor) -> Tensor:
        return fake(tensor, fake_mode, device)

    return _copied(model, device, weight, buffer)


def real_copy(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy without hooks that shares weights; meta ones are drawn at random, standard deviation 1/√fan-in."""
    generator = torch.Generator().manual_seed(0)

    def weight(tensor: Tensor) -> Tensor:
        if not unreal(tensor):
            return tensor.detach()
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        root: float = max(1, tensor.shape[-1] if tensor.ndim else 1) ** 0.5
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu") / root
        return drawn.to(device, tensor.dtype)

    def buffer(tensor: Tensor) -> Tensor:
        return weight(tensor) if unreal(tensor) else tensor.detach().clone()

    return _copied(model, device, weight, buffer)


def example_copy(
    args: Sequence[Any], kwargs: Mapping[str, Any], function: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of the arguments, with `function` of each tensor."""
    memo: dict[int, Any] = {id(tensor): function(tensor) for tensor in tensors_in((args, kwargs))}

    def copied(value: Any) -> Any:
        try:
            return copy.deepcopy(value, memo)
        except TypeError:
            return value

    return tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()}


def with_values(fake_mode: FakeTensorMode, device: torch.device) -> Callable[[Tensor], Tensor]:
    """For `example_copy`: tensors keep their values, on `device`; others become fake."""
    return lambda tensor: fake(tensor, fake_mode, device) if unreal(tensor) else tensor.detach().to(device, copy=True)


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def _copied(
    model: nn.Module, device: torch.device, weight: Callable[[Tensor], Tensor], buffer: Callable[[Tensor], Tensor]
) -> nn.Module:
    """A deep copy in eval mode; shared weights are split, to tell layers apart."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        kept = _weight_hooks(module)
        for name in _HOOKS:
            if (hooks := vars(module).get(name)) is not None:
                memo[id(hooks)] = OrderedDict((key, hook) for key, hook in hooks.items() if key in kept)
        if _OLD in vars(module):
            memo |= {id(vars(module)[name]): "left out" for name in _ACCELERATE if name in vars(module)}
        loose = [v for v in vars(module).values() if isinstance(v, Tensor) and _unusable(v, device)]
        for tensor in [*module._buffers.values(), *loose]:
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = buffer(tensor)
        for tensor in module._parameters.values():
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = nn.Parameter(weight(tensor), requires_grad=False)
    try:
        result = copy.deepcopy(model, dict(memo))
    except Exception as error:  # a lock, a generator, an open file, or what a __deepcopy__ raises
        raise QuantizationError(
            f"{type(model).__name__} cannot be copied, which its graph is read from: {_uncopied(model, memo)}{error}; "
            "remove it while the graph is read, or pass `segments` by hand."
        ) from error
    seen: set[int] = set()
    for module in result.modules():
        _restore_forward(module)
        own = module._parameters.get("weight") if isinstance(module, CUTTABLE) else None
        if own is None:
            continue
        if id(own) in seen:
            module.weight = nn.Parameter(own.detach(), requires_grad=False)
        seen.add(id(module.weight))
    return result.eval()


def _weight_hooks(module: nn.Module) -> set[int]:
    """Hooks that make the weight: older weight and spectral norm, pruning."""
    if not isinstance(vars(module).get("weight"), Tensor):
        return set()
    return {key for key, hook in module._forward_pre_hooks.items() if not inspect.isroutine(hook)}


def _uncopied(model: nn.Module, memo: dict[int, Any]) -> str:
    """Which attribute refuses copying, as the head of a sentence, or ""."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_modules", "_parameters", "_buffers"):
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:
                    return f"its attribute {f'{name}.{key}' if name else key} is a {type(value).__name__}: "
    return ""


def _restore_forward(module: nn.Module) -> None:
    old = vars(module).pop(_OLD, None)
    if old is None:
        return
    for name in _ACCELERATE:
        vars(module).pop(name, None)
    if getattr(old, "__func__", None) is not type(module).forward:
        vars(module)["forward"] = old


def _unusable(tensor: Tensor, device: torch.device) -> bool:
    # Plain tensor attributes keep their values, which a model may read, unless they are unusable as they are.
    return tensor.device != device or not tensor.is_leaf or isinstance(tensor, FakeTensor)
