"""What diffusers calls while it loads a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from segquant.deploy.diffusers.calibration import load_calibration
from segquant.errors import QuantizationError
from segquant.layers.adapters import refuse_adapters_, refuse_without
from segquant.layers.layer import QuantLayer
from segquant.layers.saving import refuse_save_pretrained_
from segquant.quantize.run import quantize_
from segquant.serialize.config import from_config, to_config
from segquant.serialize.digest import check_digests, digests
from segquant.serialize.load import refuse_infinite, set_buffer, strided, swap_empty
from segquant.serialize.save import describe

CALIBRATION = "write one by segquant.deploy.diffusers.save_calibration(batches, path)"


class SegQuantQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Reads quantized layers as they were saved; or quantizes a float model once its weights are there.

    Codes and scales keep their dtype whatever `torch_dtype` says; biases and layers left in float follow it.
    """

    use_keep_in_fp32_modules: ClassVar[bool] = False
    """With True, diffusers hands out its class's own list, to which ours would be added for good."""
    required_packages: ClassVar[list[str]] = ["segquant"]

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.stored: Mapping[str, Tensor] = {}
        """What a model's `save_pretrained` is to write."""
        self._manifest: dict[str, Any] = {}
        if self.pre_quantized:
            self._manifest = from_config(quantization_config.saved, "config.json")
        self._dtype: torch.dtype | None = None
        self._in_files: dict[str, str] = {}
        self._outside: dict[str, Tensor] = {}
        self._folder = "the folder"

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse weights on disk."""
        places = device_map.values() if isinstance(device_map, Mapping) else ()
        if "disk" in places:
            raise QuantizationError(
                "device_map puts a part of the model on disk; quantized layers keep their codes in buffers, which "
                "accelerate does not read from there: use 'cpu', or enable_model_cpu_offload()"
            )

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:
        """As it is; None loads every tensor in the dtype it was saved in."""
        if torch_dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
            raise QuantizationError(
                f"torch_dtype={torch_dtype} is no dtype that a quantized model computes in; use torch.bfloat16, "
                "torch.float16 or torch.float32"
            )
        self._dtype = torch_dtype
        return torch_dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Without buffers that no state dict holds; notes the files' dtypes."""
        files = [file for file in checkpoint_files if isinstance(file, (str, Path))]
        if files:
            self._folder = str(Path(files[0]).parent)
        if not self.pre_quantized:
            return loaded_keys
        for file in files:
            self._in_files |= _dtypes(file)
        check_digests(files, self._folder)
        outside = set(self._manifest["outside"])
        return [key for key in loaded_keys if key not in outside]

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Keep buffers that no state dict holds for later."""
        if not self.pre_quantized:
            return state_dict
        self._outside |= {name: state_dict[name] for name in self._manifest["outside"] if name in state_dict}
        return {name: tensor for name, tensor in state_dict.items() if name not in self._outside}

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """None may be missing: diffusers would only warn, and leave them empty."""
        if not self.pre_quantized:
            return missing_keys
        made = {name for name, parameter in model.named_parameters() if not parameter.numel()}
        left = sorted(set(missing_keys) - made - self._manifest["aliases"].keys())
        if left:
            raise QuantizationError(
                f"{self._folder} lacks {left[0]}"
                + (f" and {len(left) - 1} more tensors" if len(left) > 1 else "")
                + ": its files are of another model than its config.json, or were not all copied; save it again"
            )
        return []

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """Whether it is a quantized layer's, its bias aside."""
        owner, _, key = param_name.rpartition(".")
        return self.pre_quantized and key != "bias" and isinstance(model.get_submodule(owner), QuantLayer)

    def check_quantized_param_shape(self, param_name: str, current: Tensor, loaded: Tensor) -> bool:
        """Raise: it has another shape."""
        raise QuantizationError(
            f"{param_name} in {self._folder} has shape {tuple(loaded.shape)} instead of {tuple(current.shape)}: its "
            "files are of another model than its config.json; save it again"
        )

    def create_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, target_device: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Put it into its layer, in the layer's dtype (diffusers hands it over in float32)."""
        owner, _, key = param_name.rpartition(".")
        layer = model.get_submodule(owner)
        assert isinstance(layer, QuantLayer)
        refuse_infinite(param_name, param_value, self._folder)
        layer._buffers[key] = param_value.to(target_device, layer.layout.buffers()[key][1])

    def adjust_target_dtype(self, torch_dtype: torch.dtype) -> torch.dtype:
        """Of most parameters, where a device map is made."""
        return torch.int8

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `save_quantized` would write."""
        return dict(self.stored), digests(self.stored)

    def _process_model_before_weight_loading(
        self, model: nn.Module, device_map: Any = None, keep_in_fp32_modules: list[str] | None = None, **kwargs: Any
    ) -> None:
        kept = [] if keep_in_fp32_modules is None else keep_in_fp32_modules
        if self._dtype is not None:
            named: Any = getattr(model, "_keep_in_fp32_modules", None) or []
            kept.extend([named] if isinstance(named, str) else named)
        if not self.pre_quantized:
            return
        refuse_without(model, self._in_files, self._folder)
        swap_empty(model, self._manifest)
        fixed: set[str] = set()
        for layer in model.modules():
            if isinstance(layer, QuantLayer):
                dtype = self._dtype or layer.float_like.dtype
                layer.float_like = nn.Parameter(torch.empty(0, dtype=dtype, device="cpu"), requires_grad=False)
                fixed |= {key for key, (_, kind) in layer.layout.buffers().items() if kind.is_floating_point}
        kept.extend(sorted(fixed))
        if self._dtype is None:
            self._as_in_files(model)

    def _as_in_files(self, model: nn.Module) -> None:
        """Empty tensors of the files' dtypes: without `torch_dtype`, diffusers casts to what is there."""
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            kind = _KINDS.get(self._in_files.get(name, ""))
            if kind is not None and tensor.dtype != kind and not isinstance(_owner(model, name), QuantLayer):
                tensor.data = tensor.data.to(kind)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.pre_quantized:
            self._finish(model)
        else:
            self._quantize(model)
        refuse_adapters_(refuse_save_pretrained_(model))
        # True would forbid .to(dtype), which quantized layers take: their scales stay as they are
        model.is_quantized = False  # type: ignore[assignment]
        return model

    def _finish(self, model: nn.Module) -> None:
        tensors = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
        for alias, name in self._manifest["aliases"].items():
            if tensors[alias].is_meta:
                owner, _, key = alias.rpartition(".")
                setattr(model.get_submodule(owner), key, tensors[name])
        for name, stride in self._manifest["strides"].items():
            if name in tensors and name not in self._outside:
                tensors[name].data = strided(name, tensors[name].data, stride, self._folder)
        own = next(iter(self._manifest["layers"].values())).get("dtype")
        for name, tensor in self._outside.items():
            cast = self._dtype is not None and str(self._dtype) != f"torch.{own}"
            if name in tensors and not (cast and tensor.is_floating_point()):
                set_buffer(model, name, tensor.to(tensors[name].device), self._folder)
        self._outside = {}

    def _quantize(self, model: nn.Module) -> None:
        config = self.quantization_config
        if getattr(model, "hf_device_map", None) and len(model.hf_device_map) > 1:  # type: ignore[arg-type]
            raise QuantizationError(
                "a model in parts on several devices is not quantized on load; load it without device_map, or quantize "
                "and save it first"
            )
        batches = [] if config.calibration is None else _placed(load_calibration(config.calibration), model)
        try:
            quantize_(model, config.method, batches)
        except QuantizationError as error:
            if config.calibration is None:
                raise QuantizationError(
                    f"{config.method.name} on load needs calibration=FILE in its quant_kwargs; {CALIBRATION}"
                ) from error
            raise
        _, manifest = describe(model)
        config.method, config.saved = None, to_config(manifest)

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


_KINDS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""By safetensors' names."""


def _dtypes(file: str | Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise QuantizationError(f"{file} is damaged ({error}); save or copy it again") from error


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _placed(batches: Iterator[Any], model: Any) -> Iterator[Any]:
    """On the model's device; floating tensors of two dimensions or more (not timesteps) in its dtype."""

    def put(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point() and tensor.dim() >= 2
        return tensor.to(model.device, model.dtype if floating else tensor.dtype)

    for batch in batches:
        yield tree_map_only(Tensor, put, batch)
