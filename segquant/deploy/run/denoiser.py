"""The module that stands in a pipeline."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from segquant.deploy.onnx.manifest import Input, Manifest
from segquant.deploy.run.engine import Array, Engine, cause
from segquant.errors import QuantizationError, nearest

MASK = "mask"
"""In the names of inputs that are added to scores of attention, where -inf says "not this one"."""


class Config(dict[str, Any]):
    """A configuration, its keys as attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the configuration has no {name!r}") from error


class ExportedDenoiser(nn.Module):
    """Calls as of the denoiser that was exported, run by an engine; on the CPU, float32, without gradients."""

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        super().__init__()
        self.engine, self.manifest, self.config = engine, manifest, Config(manifest.config)
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self._output = namedtuple("Output", manifest.outputs)  # type: ignore[misc]

    @property
    def add_embedding(self) -> Any:
        """SDXL's pipelines look up the width of what they add."""
        width = self.config.get("projection_class_embeddings_input_dim")
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Pipelines call it; nothing is cached between calls."""
        return nullcontext()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of the exported model: a tuple with return_dict=False, else one with names (`.sample`)."""
        given = dict(zip(self.manifest.parameters, args, strict=False)) | kwargs
        named = given.pop("return_dict", True)
        flat = dict(_flat(given))
        feeds = self._feeds(flat)
        self._check_rest(flat)
        found = [torch.from_numpy(array) for array in self._run(feeds)]
        return self._output(*found) if named else tuple(found)

    def _run(self, feeds: dict[str, Array]) -> list[Array]:
        try:
            return self.engine.run(feeds)
        except (QuantizationError, MemoryError):
            raise
        except Exception as error:  # ONNX Runtime's have no common base
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise QuantizationError(
                f"{self.engine.name} cannot run the exported {self.manifest.kind} with {sizes} ({cause(error)}); give "
                "sizes like the example's, or export it with an example of these"
            ) from error

    def _feeds(self, flat: dict[str, Any]) -> dict[str, Array]:
        found: dict[str, Tensor] = {}
        for each in self.manifest.inputs:
            value = flat.pop(each.name, None)
            if value is None:
                raise QuantizationError(f"the exported {self.manifest.kind} needs {each.name}, which is not given")
            found[each.name] = torch.as_tensor(value)
        sizes: dict[str, int] = {}
        for each in self.manifest.inputs:
            if found[each.name].dim() == len(each.dimensions):
                self._check_shape(each, found[each.name], sizes)
        for each in self.manifest.inputs:
            if found[each.name].dim() != len(each.dimensions):
                found[each.name] = self._reshaped(each, found[each.name], sizes)
        return {each.name.replace(".", "_"): _array(each, found[each.name]) for each in self.manifest.inputs}

    def _check_shape(self, wanted: Input, value: Tensor, sizes: dict[str, int]) -> None:
        for size, dimension in zip(value.shape, wanted.dimensions, strict=True):
            known = sizes.setdefault(dimension.name, size // dimension.multiple) if dimension.name else None
            if not dimension.allows(size):
                raise self._wrong(wanted, value)
            if known is not None and known * dimension.multiple != size:
                raise QuantizationError(
                    f"{wanted.name} has the shape {list(value.shape)}, and by the inputs before it "
                    f"{known * dimension.multiple} stands in the place of {size}; give inputs of one batch"
                )

    def _reshaped(self, wanted: Input, value: Tensor, sizes: dict[str, int]) -> Tensor:
        """A timestep for the whole batch, or for each of its pictures."""
        if value.numel() == 1 and len(wanted.dimensions) < 2:
            shape = [sizes.get(each.name, 1) * each.multiple if each.name else each.low for each in wanted.dimensions]
            return value.reshape(()).expand(shape)
        raise self._wrong(wanted, value)

    def _wrong(self, wanted: Input, value: Tensor) -> QuantizationError:
        allowed = ", ".join(map(str, wanted.dimensions))
        return QuantizationError(
            f"{wanted.name} has the shape {list(value.shape)}, and the exported {self.manifest.kind} takes "
            f"[{allowed}]; export it with an example of these sizes"
        )

    def _check_rest(self, flat: Mapping[str, Any]) -> None:
        for name, value in flat.items():
            if value is None or (not isinstance(value, Tensor) and value == self.manifest.constants.get(name)):
                continue
            known = [each.name for each in self.manifest.inputs]
            raise QuantizationError(
                f"the exported {self.manifest.kind} has no input {name}: "
                f"{nearest(name, known)}; export it with an example call that gives it"
            )


def _flat(given: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(given, Mapping):
        pairs: Any = given.items()
    elif isinstance(given, (list, tuple)):
        pairs = enumerate(given)
    else:
        yield path, given
        return
    for key, value in pairs:
        yield from _flat(value, f"{path}.{key}" if path else str(key))


def _array(wanted: Input, value: Tensor) -> Array:
    kind: torch.dtype = getattr(torch, wanted.dtype)
    if (
        value.is_floating_point()
        and not kind.is_floating_point
        and not torch.equal(value.to(kind).to(value.dtype), value)
    ):
        raise QuantizationError(
            f"{wanted.name} is {value.dtype}, not of whole numbers, and the export takes {wanted.dtype}; round it, or "
            f"export the model with an example whose {wanted.name} is {value.dtype}"
        )
    if value.is_floating_point() and MASK not in wanted.name and not value.isfinite().all():
        raise QuantizationError(
            f"{wanted.name} holds NaN or infinity, which integers do not carry on: the output would not tell; give "
            "finite values"
        )
    found: Array = value.detach().cpu().to(kind).contiguous().numpy()
    return found
