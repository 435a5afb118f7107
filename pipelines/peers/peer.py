"""What other tools' quantizers share."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib.metadata
import io
import logging
import statistics
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segquant import PRECISIONS, QuantScheme, QuantSpec, model_weight_bytes
from segquant.bounds import at_most
from segquant.modules.calls import call
from segquant.modules.tensors import stored_tensors
from segquant.numerics.precisions import scheme_of
from segquant.optimizers.svdquant import SvdQuant
from segquant_bench.pipelines.errors import PipelineError

log = logging.getLogger(__name__)

FACTOR_BYTES = 2
"""Of a number in a low-rank branch: tools keep it in the dtype of the model, and large models have one of 16 bits."""
Forward = Callable[[nn.Module], None]
"""Sends all calibration inputs through a model."""
Apply = Callable[[nn.Module, Sequence[str], Forward], None]
"""Quantizes the named linears of a model in place, with calibration at hand."""


@dataclass(frozen=True)
class Peer:
    """Another tool as a quantizer: same linears, calibration and precision.

    Attributes:
        package: as pip knows it, or any name for one's own.
        apply: quantizes the named linears in place.
        options: what else the numbers depend on.
        skip: globs of module names that stay in floating point.
        seed: of the tool's draws.
        layer_bytes: of a quantized linear as packed, if memory holds it wider; else None.
    """

    name: str
    package: str
    precision: str
    scheme: QuantScheme
    apply: Apply
    options: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    seed: int = 0
    layer_bytes: Callable[[nn.Module], int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All that the result depends on, JSON types."""
        return {
            "peer": self.name,
            "package": self.package,
            "version": _version(self.package),
            "precision": self.precision,
            "scheme": self.scheme.to_dict(),
            "options": dict(self.options),
            "skip": list(self.skip),
            "seed": self.seed,
        }

    def layers(self, model: nn.Module) -> list[str]:
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        return [name for name in linears if not any(fnmatch.fnmatchcase(name, glob) for glob in self.skip)]

    def quantize_(self, model: nn.Module, batches: Iterable[Any]) -> nn.Module:
        """Quantize the linears in place; `batches` are gone through repeatedly.

        Raises:
            PipelineError: no linears, a group size that does not divide, a linear never called or left as it was.
        """
        names = self.layers(model)
        self.check(model, names)
        kinds = {name: type(model.get_submodule(name)) for name in names}
        device = next(model.parameters()).device
        forked = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=forked), _quiet():
            torch.manual_seed(self.seed)
            self.apply(model, names, _Calibration(names, batches))
        left = [name for name, kind in kinds.items() if not _is_changed(model.get_submodule(name), kind)]
        if left:
            raise PipelineError(f"{self.name} left {_some(left)} in floating point; add them to quantizer.skip")
        return model.eval()

    def check(self, model: nn.Module, names: list[str]) -> None:
        """PipelineError: no linears, or a group size that does not divide; reads no weights."""
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        for pattern in self.skip:
            if linears and not any(fnmatch.fnmatchcase(name, pattern) for name in linears):
                raise PipelineError(
                    f"quantizer.skip: {pattern!r} matches none of the model's {len(linears)} linears "
                    f"({_some(linears)}); correct the glob or leave it out"
                )
        if not names:
            raise PipelineError(f"{self.name} finds no linear to quantize; quantizer.skip={list(self.skip)}")
        size = self.scheme.weight.group_size if self.scheme.weight else None
        odd = [name for name in names if size and linear_at(model, name).in_features % size]
        if odd:
            raise PipelineError(
                f"groups of {size} ({self.precision}) do not divide the inputs of {_some(odd)}; add them to "
                "quantizer.skip"
            )

    def weight_bytes(self, quantized: nn.Module, names: Collection[str]) -> int:
        total = model_weight_bytes(quantized)
        if self.layer_bytes is None:
            return total
        modules = [quantized.get_submodule(name) for name in names]
        return total + sum(self.layer_bytes(module) - model_weight_bytes(module) for module in modules)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class _Calibration:
    def __init__(self, names: Sequence[str], batches: Iterable[Any]) -> None:
        self.names, self.batches = names, batches

    def __call__(self, model: nn.Module) -> None:
        called: set[str] = set()
        handles = [model.get_submodule(name).register_forward_pre_hook(_note(called, name)) for name in self.names]
        try:
            for batch in self.batches:
                call(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in self.names if name not in called]
        if missing:
            raise PipelineError(f"calibration never called {_some(missing)}; add them to quantizer.skip")


def _note(called: set[str], name: str) -> Callable[..., None]:
    return lambda *_: called.add(name)


def _is_changed(module: nn.Module, kind: type[nn.Module]) -> bool:
    return type(module) is not kind or hasattr(type(module.weight), "__tensor_flatten__")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("default")
        yield
    for line in (*printed.getvalue().splitlines(), *(str(warning.message) for warning in caught)):
        log.debug("%s", line)


def check_precision(name: str, precision: str, able: Collection[str]) -> QuantScheme:
    """The precision's scheme.

    Raises:
        ValueError: no such precision.
        PipelineError: this tool cannot do it.
    """
    scheme = scheme_of(precision)
    if precision not in able:
        can = ", ".join(known for known in PRECISIONS if known in able)
        raise PipelineError(f"{name} cannot do precision={precision}; it can do {can}")
    return scheme


def check_installed(name: str, package: str) -> None:
    """PipelineError with the install command, where the tool is missing."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise PipelineError(
            f"quantizer={name} needs {package}, which is not installed; run pip install '.[peers]' in a clone of "
            "segquant"
        ) from error


def weight_spec(scheme: QuantScheme) -> QuantSpec:
    """How a precision quantizes weights.

    Raises:
        PipelineError: not at all.
    """
    if scheme.weight is None:
        raise PipelineError("this precision leaves weights in floating point; choose another")
    return scheme.weight


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear), f"{name} is a {type(layer).__name__}"
    return layer


def branch_rank(model: nn.Module, names: Iterable[str], rank: int | None) -> int:
    """`rank`, or the median of this project's own rule."""
    if rank is not None:
        return rank
    rule = SvdQuant()
    layers = [linear_at(model, name) for name in names]
    return int(statistics.median_low([rule.rank_of(layer.in_features, layer.out_features) for layer in layers]))


def check_rank(rank: int | None) -> None:
    """ValueError below 1, and for more than a branch can have; None means `branch_rank`."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    at_most("rank", rank)


def tensors_digest(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for tensor in stored_tensors(model):
        whole.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        whole.update(_bytes(tensor))
    return whole.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
