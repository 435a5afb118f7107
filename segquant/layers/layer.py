"""What a quantized linear and a quantized convolution have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segquant.checks import require
from segquant.errors import QuantizationError
from segquant.kernels.backend import Backend
from segquant.kernels.reference import REFERENCE
from segquant.layers.foreign import refuse_foreign_adapter, refuse_foreign_save
from segquant.layers.fusing import guard_fusing
from segquant.layers.guarded import Handed, Parameters, plain_of, refuse_reparametrized
from segquant.layers.packs import has_place, held_bytes, is_same_pack, is_unchanged, keep_sizes, versions
from segquant.layers.weight import READ_ONLY, QuantWeight
from segquant.modules.layers import Replaced
from segquant.modules.state import outside_inference
from segquant.numerics.fake_quant import dequantize_weight
from segquant.numerics.layout import Layout
from segquant.transforms.chain import undo_all


class QuantLayer(Replaced, nn.Module):
    """A layer whose weight is stored as codes and whose input is fake quantized on the fly.

    The state dict holds codes (int4 two per byte), scales, transforms and bias; `.to(dtype)` casts the bias and
    the dtype of `weight`.
    """

    float_kind: ClassVar[type[nn.Module]]
    """What it replaces."""
    keep_packed: bool | None = None
    """Keep what the backend packed between calls: faster, at the cost of (for "reference") a float32 weight; None: if
    there is room for that."""
    backend: Backend = REFERENCE
    """How the layer runs; see `segquant.set_backend_`."""
    _packs_early = False
    codes: Tensor
    weight_scale: Tensor
    bias: Any
    float_like: nn.Parameter
    """No elements; of the float layer's dtype, for code that asks a module's first parameter."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A float layer where the arguments are one's: code that makes a layer of another's type (peft) gets that."""
        return cls.float_kind(*args, **kwargs) if args and isinstance(args[0], int) else super().__new__(cls)

    def __init__(
        self,
        layout: Layout,
        *,
        dtype: torch.dtype = torch.float32,
        bias_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        require(layout, Layout, "QuantLinear", "layout", "a Layout; from_float makes a layer of an nn.Linear")
        nn.Module.__init__(self)  # not the float layer's, which would make a float weight
        self._parameters = Parameters()
        self.layout = layout
        self.in_features, self.out_features = layout.in_features, layout.out_features
        self.float_like = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
        for name, (shape, kind) in layout.buffers().items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))
        bias = torch.zeros(layout.out_features, dtype=bias_dtype or dtype, device=device) if layout.bias else None
        self.register_buffer("bias", bias)
        self._packed: Any = None
        self._packed_of: Any = None
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Tensor:
        """The float weight [out, in, …], transforms undone, in the float layer's dtype; read-only."""
        if torch.compiler.is_compiling():  # a plain tensor is what compilers know
            return self._float_weight()
        guard_fusing()  # whoever puts an adapter beside the layer looks at its weight
        if self.layout.folded or self.layout.folded_rows:
            refuse_foreign_adapter()
        return QuantWeight.of(self._float_weight, self._weight_shape(), None, self.float_like.dtype, self.codes.device)

    @weight.setter
    def weight(self, value: Any) -> None:
        raise QuantizationError(READ_ONLY)

    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def _float_weight(self) -> Tensor:
        tensors = self.tensors()
        weight = torch.cat(undo_all(self.layout, tensors, dequantize_weight(self.layout, tensors)))
        return weight.reshape(self._weight_shape()).to(self.float_like.dtype)

    def weight_bytes(self) -> int:
        """Bytes of codes, scales, the transforms' tensors and bias."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def held_bytes(self) -> int:
        """Bytes of memory that the layer holds now: its tensors, and what its backend packed of them and keeps."""
        return held_bytes(self.tensors(), self._packed)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the input's dtype; gradients pass as if nothing were rounded.

        Raises:
            QuantizationError: an input of another width.
        """
        self._refuse_width(input)
        output = self.backend.linear(input.detach(), self.layout, self._ready())
        if not (input.requires_grad and torch.is_grad_enabled()):
            return output
        passed: Tensor = _StraightThrough.apply(output, input, self)
        return passed

    def _refuse_width(self, input: Tensor) -> None:
        if not input.dim() or input.shape[-1] != self.layout.in_features:  # kernels would read other rows of it
            raise QuantizationError(
                f"the input has the shape {list(input.shape)}, and this quantized linear takes "
                f"[..., {self.in_features}]"
            )

    def as_float(self, input: Tensor) -> Tensor:
        """`forward` of an input as the float layer gets it, to an output as that gives it.

        They differ where smoothing was folded into what makes the input, or into rows of this layer.
        """
        layout = self.layout
        if layout.folded:
            input = input / self._along_channels(self.get_buffer("folded")[:: layout.taps], input)
        output: Tensor = self(input)
        if layout.folded_rows:
            output, vector = output.clone(), self.get_buffer("folded_rows")
            for start, stop, plus in layout.folded_rows:
                part = self._rows_of(output, start, stop)
                wide, vector = self._along_channels(vector[: stop - start], part), vector[stop - start :]
                part.copy_((part + plus) * wide - plus)
        return output

    def _along_channels(self, vector: Tensor, like: Tensor) -> Tensor:
        return vector.to(like.dtype)

    def _rows_of(self, output: Tensor, start: int, stop: int) -> Tensor:
        return output[..., start:stop]

    def _ready(self) -> Any:
        """What the backend packed, made anew if a buffer was replaced or written since."""
        compiling = torch.compiler.is_compiling()  # compilers know neither versions nor inference mode
        packed = self._packed  # read once: another thread may forget it
        if packed is not None and (compiling or is_unchanged(self._packed_of, self.tensors())):
            return packed
        with nullcontext() if compiling else outside_inference():
            if not compiling:
                self._settle()
            now = None if compiling else versions(self.tensors())
            packed = self.backend.pack(self.layout, self.tensors())
        if not compiling:
            keep_sizes(packed)
        if self._keeps(compiling):
            self._packed, self._packed_of = packed, now
        return packed

    def pack_early(self) -> None:
        """Pack before the first call where that makes no float weight: a compiler that met a layer without a pack would
        put the packing into its graph, and compile again at the next call. Copies and moved layers do as this one."""
        self._packs_early = True
        device = self.tensors()["codes"].device
        if self.keep_packed is False or device.type == "meta" or self.backend.float_bytes(self.layout):
            return
        if self.backend.why_not(self.layout, device) is None:  # a call says why
            self._ready()

    def _keeps(self, compiling: bool) -> bool:
        """Whether what was packed stays. Compilers cannot ask the system what is free."""
        if self.keep_packed is not None or compiling:
            return self.keep_packed is not False
        return has_place(self.backend, self.layout, self.tensors()["codes"].device)

    def _settle(self) -> None:
        """Buffers as plain tensors that count what is written to them, which those of inference mode do not."""
        for name, tensor in self.tensors().items():
            if isinstance(tensor, Handed):
                self._buffers[name] = plain_of(tensor)
            elif tensor.is_inference():
                self._buffers[name] = tensor.clone()

    def is_stale(self) -> bool:
        """Whether it computes with an older weight than its buffers hold: one was written to unseen (by numpy, …)."""
        if self._packed is None or not is_unchanged(self._packed_of, self.tensors()):
            self.forget_packed()  # which compiled code would go on using
            return False
        with outside_inference():
            fresh = self.backend.pack(self.layout, self.tensors())
        return not is_same_pack(self._packed, fresh, self.layout, self.backend)

    def forget_packed(self) -> None:
        """Drop what the backend packed; the next call packs anew."""
        self._packed = self._packed_of = None

    def tensors(self) -> dict[str, Tensor]:
        """`layout.buffers()` by name, and "bias" where there is one."""
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    def extra_repr(self) -> str:
        """One line for print(model)."""
        layout = self.layout
        parts = [f"{layout.in_features}, {layout.out_features}", f"weight={layout.weight_spec.dtype}"]
        if len(layout.rows) > 1:
            parts.append(f"rows={layout.rows}")
        if len(layout.columns) > 1:
            parts.append(f"columns={layout.columns}")
        return ", ".join(parts)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of nn.Module; a float weight (of weight_norm, pruning …) is refused."""
        if name.startswith("weight"):
            raise QuantizationError(READ_ONLY)
        if name.removesuffix("_orig") in self._buffers:  # as pruning names it
            refuse_reparametrized(name.removesuffix("_orig"))
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLayer:
        # Everything but the bias keeps its dtype under .to(bfloat16): a rounded scale is another layer. Nor is a buffer
        # missing or rounded meanwhile: other threads may run the layer.
        fixed = {id(buffer) for name, buffer in self.tensors().items() if name != "bias"}

        def fitted(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in fixed and moved.dtype != tensor.dtype else moved

        super()._apply(fitted, recurse)  # type: ignore[no-untyped-call]
        self.repack()
        return self

    def repack(self) -> None:
        """Of new tensors: early where the old ones were."""
        self.forget_packed()
        if self._packs_early:
            self.pack_early()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        refuse_foreign_save()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if f"{prefix}weight" in state_dict:
            # raised even where strict=False, which would load the bias and pass over the weight
            error_msgs.append(
                f"{prefix}weight is a float weight, and {prefix[:-1] or 'the layer'} is quantized: load float weights "
                "before quantize_"
            )
            return
        codes = state_dict.get(f"{prefix}codes")
        if codes is not None and f"{prefix}float_like" not in state_dict:  # files hold what has elements
            state_dict[f"{prefix}float_like"] = torch.empty_like(self.float_like, device=codes.device)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getattr__(self, name: str) -> Any:
        found: Any = super().__getattr__(name)
        # the bias is read at every call, and other layers are made of it
        if torch.compiler.is_compiling() or name == "bias" or name not in self.__dict__.get("_buffers", ()):
            return found
        return Handed.of(found, self.forget_packed)

    def __delattr__(self, name: str) -> None:
        if name in self._buffers:
            refuse_reparametrized(name)
        super().__delattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":  # nn.Module would not get as far as the property
            raise QuantizationError(READ_ONLY)
        if name == "backend":  # another cannot read what this one packed
            self.forget_packed()
        if name in self.__dict__.get("_buffers", ()):
            value = self._fitting(name, value)
            self.forget_packed()
        super().__setattr__(name, value)

    def _fitting(self, name: str, value: Any) -> Any:
        """A new buffer's tensor, of the old one's shape."""
        old = self._buffers[name]
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (old, value)]
        if shapes[0] != shapes[1]:
            raise QuantizationError(
                f"{name} of a quantized layer has shape {shapes[0]}, and {shapes[1]} is given; quantize the changed "
                "float layer instead"
            )
        return plain_of(value) if isinstance(value, (nn.Parameter, Handed)) else value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None, "_packed_of": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.repack()


class _StraightThrough(torch.autograd.Function):
    """The output, with the gradient of the float product: rounding has none, and adapters before a layer need one."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, layer: QuantLayer) -> Tensor:
        ctx.layer = layer
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, gradient @ ctx.layer._float_weight().flatten(1).to(gradient.dtype), None


def _forget(module: nn.Module, _: Any) -> None:
    if isinstance(module, QuantLayer):
        module.repack()
