"""An AOTInductor package: a compiled model that runs without its Python."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from segquant.checks import checked
from segquant.errors import QuantizationError, first_line
from segquant.files import write_whole
from segquant.kernels.reference import REFERENCE
from segquant.layers.attention import torchs
from segquant.layers.layer import QuantLayer
from segquant.modules.swap import evaluating
from segquant.modules.wrappers import unwrapped

SUFFIX = ".pt2"


@checked()
def export_package(
    model: nn.Module,
    path: str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_batch: bool = True,
) -> Path:
    """Compile a model ahead of time, with torch.export and AOTInductor; returns the path.

    `torch._inductor.aoti_load_package(path)` gives the compiled model in a process that has torch alone: not the float
    model, not segquant, not diffusers. It takes arguments like the given ones and computes what backend "reference"
    does; weights stay codes in the file. It runs on the kind of machine it was compiled on. Packages read inputs of
    other widths and dtypes as if they were the given ones; torch refuses them where the process has
    AOTI_RUNTIME_CHECK_INPUTS=1 in its environment.

    Args:
        model: quantized, on its final device; unchanged afterwards.
        path: ends in ".pt2".
        args: of a forward, batch of at least 2 for a dynamic one.
        kwargs: likewise.
        dynamic_batch: let the first dimension of the arguments' tensors vary.

    Raises:
        QuantizationError: no quantized layer, or the model cannot be captured or compiled; why.
    """
    target = Path(path)
    if target.suffix != SUFFIX:
        raise QuantizationError(f"path is {str(path)!r}; torch reads packages whose names end in {SUFFIX}")
    with unwrapped(model) as inner:
        if not any(isinstance(module, QuantLayer) for module in inner.modules()):
            raise QuantizationError(
                "the model has no quantized layer; run quantize_ first, or use torch's own compiler"
            )
    given = (tuple(args), dict(kwargs or {}))
    with unwrapped(model) as inner, evaluating(inner), _capturable(inner), torchs(inner), torch.no_grad():
        program = _captured(inner, given, _shapes(given) if dynamic_batch else None)
        _compiled(program, target)
    return target


def _captured(model: nn.Module, given: tuple[Any, Any], shapes: Any) -> torch.export.ExportedProgram:
    args, kwargs = copy.copy(given)
    dynamic = None if shapes is None else _by_name(model, shapes)
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch raises what it meets in the model's code
        raise QuantizationError(
            f"{type(model).__name__} cannot be captured: {type(error).__name__}: {first_line(error)}; see whether "
            "dynamic_batch=False helps"
        ) from error


def _by_name(model: nn.Module, shapes: tuple[Any, Any]) -> dict[str, Any]:
    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, shapes[0], strict=False)), **shapes[1]}


def _shapes(given: tuple[Any, Any]) -> Any:
    """The first dimension of every tensor as large as the largest tensor's."""
    found = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if not found:
        raise QuantizationError("the forward is given no tensor; give args or kwargs")
    batch = max(found, key=Tensor.numel).shape[0]
    if batch < 2:
        raise QuantizationError("the arguments are a batch of one; give two or more, or dynamic_batch=False")
    dimension = torch.export.Dim("batch", min=1)

    def shape(value: Any) -> dict[int, Any] | None:
        whole = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
        return {0: dimension} if whole else None

    return tree_map(shape, given)


def _compiled(program: torch.export.ExportedProgram, target: Path) -> None:
    def write(partial: Path) -> None:
        own = partial.with_name(partial.name + SUFFIX)  # torch looks at the end of the name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's own compiler
                torch._inductor.aoti_compile_and_package(program, package_path=str(own))
            own.replace(partial)
        finally:
            own.unlink(missing_ok=True)

    try:
        write_whole(target, write)
    except QuantizationError:
        raise
    except Exception as error:  # a C++ compiler is missing or fails, among others
        raise QuantizationError(
            f"AOTInductor cannot compile the model: {type(error).__name__}: {first_line(error)}; it needs a C++ "
            "compiler (g++ or clang) on the path"
        ) from error


@contextmanager
def _capturable(model: nn.Module) -> Iterator[None]:
    """Plain torch operations on the layers' own tensors: a packed weight would be stored in float beside the codes."""
    layers = [module for module in model.modules() if isinstance(module, QuantLayer)]
    before = [(layer.backend, layer.keep_packed) for layer in layers]
    for layer in layers:
        layer.forget_packed()
        layer.backend, layer.keep_packed = REFERENCE, False
    try:
        yield
    finally:
        for layer, (backend, keep) in zip(layers, before, strict=True):
            layer.backend, layer.keep_packed = backend, keep
            layer.repack()
