"""Attention whose queries and keys are multiplied as 8-bit codes: their ranges, and what is traced in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.overrides import TorchFunctionMode

from segquant.deploy.onnx.forms import FLOAT, INT8, PROFILES, Profile
from segquant.deploy.onnx.traced import DOMAIN
from segquant.errors import QuantizationError, nearest
from segquant.layers.attention import attentions
from segquant.layers.layer import QuantLayer
from segquant.modules.calls import batches_of, call
from segquant.modules.state import own_state
from segquant.modules.swap import evaluating

SCORES = "Scores"
"""The node of DOMAIN for queries times keys, which `scores` writes out."""
SIDES = ("queries", "keys")
CALL = ", call "
"""Between the name of a module and the number of its call of attention, from the second on."""
Ranges = dict[str, tuple[Tensor, Tensor]]
"""By attention, the largest magnitude of its queries and of its keys: [heads], or [1] where these have no heads."""


def check_attention(attention: str, profile: Profile, batches: Iterable[Any] | None) -> None:
    """QuantizationError for an attention that there is not, or not in such files, and for batches that nobody reads."""
    if attention not in (FLOAT, INT8):
        raise QuantizationError(f"no attention {attention!r}; {nearest(attention, (FLOAT, INT8))}")
    if attention == INT8 and not profile.coded_attention:
        takes = " and ".join(repr(name) for name, each in PROFILES.items() if each.coded_attention)
        raise QuantizationError(
            f"attention={attention!r} is asked for, and files for {profile.name} have attention in float; "
            f"profile={takes} takes it"
        )
    if attention == FLOAT and batches is not None:
        raise QuantizationError("attention_batches are given, and attention is 'float'; leave one of the two out")


@dataclass(frozen=True)
class Call:
    """Arguments of `F.scaled_dot_product_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def by_torch(self) -> Tensor:
        return nnf.scaled_dot_product_attention(**vars(self))

    def by_codes(self, name: str) -> Tensor:
        """With a node of SCORES."""
        query, key, value, mask = self.query, self.key, self.value, self.attn_mask
        if self.enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        factor = float(query.shape[-1]) ** -0.5 if self.scale is None else float(self.scale)
        attributes: dict[str, Any] = {"attention": name, "factor": factor}
        shape = (*query.shape[:-1], key.shape[-2])
        scores = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{SCORES}", [query, key], attributes, dtype=torch.float32, shape=shape, version=1
        )
        if self.is_causal:
            mask = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        found = scores.softmax(-1) @ value
        if self.attn_mask is None:
            return found
        allowed = self.attn_mask if self.attn_mask.dtype == torch.bool else self.attn_mask > float("-inf")
        # as torch has it where no key is allowed, as for padded queries; the softmax is NaN there
        return found.masked_fill(~allowed.any(-1, keepdim=True), 0.0)


class _Calls(TorchFunctionMode, ABC):
    """Inside: calls of `F.scaled_dot_product_attention` of this thread, by the name of the module that makes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model, self._handles = model, list[Any]()
        self._open, self._counts = list[str](), Counter[str]()

    @abstractmethod
    def attend(self, name: str, given: Call) -> Tensor:
        """The output of a call, by the name of its attention."""

    def begin(self) -> None:
        """A forward starts."""
        self._open.clear()
        self._counts.clear()

    def __enter__(self) -> Any:
        for name, module in self._model.named_modules():
            if not isinstance(module, QuantLayer):
                self._handles.append(module.register_forward_pre_hook(self._opener(name)))
                self._handles.append(module.register_forward_hook(self._close, always_call=True))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        while self._handles:
            self._handles.pop().remove()

    def _opener(self, name: str) -> Callable[..., None]:
        def opened(*_: Any) -> None:
            if not name and not self._open:  # else a model that calls itself
                self.begin()
            self._open.append(self._told(name))

        return opened

    def _told(self, name: str) -> str:
        return name or type(self._model).__name__

    def _close(self, *_: Any) -> None:
        self._open.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not nnf.scaled_dot_product_attention or not self._open:
            return func(*args, **(kwargs or {}))
        name = self._open[-1]
        self._counts[name] += 1
        count = self._counts[name]
        return self.attend(name if count == 1 else f"{name}{CALL}{count}", Call(*args, **(kwargs or {})))


class _Observed(_Calls):
    """Attributes: found: of all calls so far."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: Ranges = {}

    def attend(self, name: str, given: Call) -> Tensor:
        if not given.dropout_p:
            seen = tuple(_largest(x, name, side) for x, side in zip((given.query, given.key), SIDES, strict=True))
            before = self.found.get(name, seen)
            query, key = (_larger(one, other) for one, other in zip(before, seen, strict=True))
            self.found[name] = query, key
        return given.by_torch()


def _largest(x: Tensor, name: str, side: str) -> Tensor:
    found = x.detach().abs().amax([dim for dim in range(x.dim()) if x.dim() < 4 or dim != x.dim() - 3]).reshape(-1)
    if not bool(found.isfinite().all()):
        raise QuantizationError(f"{name}: the {side} of its attention contain NaN or inf; check the batches")
    return found.float().cpu()


def _larger(one: Tensor, other: Tensor) -> Tensor:
    """Of heads; of all where there are other heads than before."""
    if one.shape != other.shape:
        one, other = one.amax().reshape(1), other.amax().reshape(1)
    return torch.maximum(one, other)


@own_state()
def attention_ranges(model: nn.Module, example: Mapping[str, Any], batches: Iterable[Any] | None) -> Ranges:
    """Over the example and the batches, by the model as it computes.

    Raises:
        QuantizationError: no attention, queries or keys that are not finite, or a batch that the model does not take.
    """
    observed = _Observed(model)
    with evaluating(model), observed:
        call(model, example)
        for batch in batches_of(batches):
            call(model, batch)
    if not observed.found:
        raise QuantizationError(
            f"attention={INT8!r} is asked for, and {type(model).__name__} has no attention that calls "
            "F.scaled_dot_product_attention itself (nn.MultiheadAttention computes its own); leave it out"
        )
    return observed.found


class CodedAttention(_Calls):
    """Inside: what torch.export traces has a node of SCORES in each attention; all else is torch's.

    Attributes:
        forms: of each attention of the last forward that was traced, "int8", or "float" where no range is known.
    """

    def __init__(self, model: nn.Module, ranges: Ranges) -> None:
        super().__init__(model)
        self.ranges, self._traced = ranges, dict[str, str]()

    @property
    def forms(self) -> dict[str, str]:
        """By name; of modules that compute attention in another way, "float"."""
        told = {name.partition(CALL)[0] for name in self._traced}
        others = [each for each in map(self._told, attentions(self._model)) if each not in told]
        return {**self._traced, **dict.fromkeys(others, FLOAT)}

    def attend(self, name: str, given: Call) -> Tensor:
        if not torch.compiler.is_exporting():
            return given.by_torch()
        coded = name in self.ranges and not given.dropout_p
        self._traced[name] = INT8 if coded else FLOAT
        if not coded:
            return given.by_torch()
        return given.by_codes(name)

    def begin(self) -> None:
        super().begin()
        if torch.compiler.is_exporting():
            self._traced.clear()
