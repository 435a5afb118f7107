"""The stage of seconds and memory, with `speed=true`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from segquant.files import write_json
from segquant.layers.layer import QuantLayer
from segquant.modules.tensors import stored_tensors
from segquant_bench.pipelines.bounds import within
from segquant_bench.pipelines.config.engine import COMPILE, EXPORTED
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.errors import PipelineError, one_line, one_of, unknown_key
from segquant_bench.pipelines.runtime import provenance
from segquant_bench.pipelines.runtime.growth import peak_growth_mb, resident_mb
from segquant_bench.pipelines.sampling.generate import first_tensor
from segquant_bench.pipelines.sampling.stopwatch import Seconds, in_turn
from segquant_bench.pipelines.stages.quantize import quantized_denoiser
from segquant_bench.pipelines.stages.reference import pictures_depends
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.engine import (
    EXPORT,
    compile_,
    compiling,
    denoiser_calls,
    engine_of,
    folder_bytes,
    place,
)
from segquant_bench.pipelines.stages.shared.quantized import twin

FILE = "speed.json"
OURS, FLOAT32 = "run", "float32"
AGAINST = ("bfloat16", "float32_compiled", "bfloat16_compiled")
"""What else may be measured beside the run's engine and float32 in plain torch."""
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """`stages.speed`: rounds that count, rounds before them, and what else is measured."""

    repeats: int = 7
    warmup: int = 2
    against: tuple[str, ...] = ()

    @staticmethod
    def of(given: Any) -> Settings:
        """PipelineError for an unknown key, a value of another type or out of range, or an unknown name."""
        if not isinstance(given, Mapping):
            raise PipelineError(f"stages.speed={given!r} is no section; set stages.speed.KEY=VALUE")
        known = [item.name for item in fields(Settings)]
        for key in given:
            if key not in known:
                raise PipelineError(unknown_key(f"stages.speed.{key}", known))
        against = given.get("against", ())
        if not isinstance(against, list | tuple) or not all(isinstance(name, str) for name in against):
            raise PipelineError(
                f"stages.speed.against={one_line(repr(against))[:60]} is no list of names; write "
                f"'stages.speed.against=[{AGAINST[0]}]' with any of {', '.join(AGAINST)}"
            )
        for name in against:
            one_of("stages.speed.against", name, AGAINST)
        for key in ("repeats", "warmup"):
            within(f"stages.speed.{key}", given.get(key, 1))
        return Settings(**{**given, "against": tuple(against)})


def _settings(run: Run) -> Settings:
    return Settings.of(run.config.stages.get("speed") or {})


def _depends(run: Run) -> dict[str, Any]:
    settings = _settings(run)
    return {
        "settings": {**vars(settings), "against": list(settings.against)},
        "inputs": pictures_depends(run),
        "engine": engine_of(run).settings(),
        "processor": provenance.processor_name(),
        "device": provenance.device_record(run.device),
        "versions": provenance.versions_of(("torch", "diffusers", "onnxruntime", "openvino")),
    }


def _compute(run: Run, folder: Path) -> None:
    settings, calls = _settings(run), denoiser_calls(run)
    before = resident_mb()
    ours = run.denoiser if not run.has("generate") else _placed(run)
    loaded = _growth(before) if run.config.run.name in EXPORTED else None
    modules = {OURS: ours, FLOAT32: _float(run, torch.float32)}
    modules |= {name: _float(run, getattr(torch, name.partition("_")[0])) for name in settings.against}
    for name, module in modules.items():
        if name.endswith("_compiled"):
            compile_(module)
    ways = {name: _step(module, calls) for name, module in modules.items()}
    compiled = run.config.run.name == COMPILE or any(name.endswith("_compiled") for name in ways)
    with torch.no_grad(), ExitStack() as stack:
        if compiled:
            stack.enter_context(compiling())
        # An engine's buffers grow in its first call, torch's are given back: compiling ones are measured afterwards.
        peaks = {OURS: peak_growth_mb(ways[OURS])} if loaded is not None else {}
        seconds = in_turn(ways, settings.repeats, settings.warmup)
        peaks |= {name: peak_growth_mb(way) for name, way in ways.items() if name not in peaks}
        error = _error(ways)
    weights = {name: _held_mb(module) for name, module in modules.items()}
    if loaded is not None:
        weights[OURS] = loaded
    write_json(folder / FILE, _record(run, len(calls), seconds, peaks, weights, error))


def _placed(run: Run) -> nn.Module:
    """As in `generate`, from its folder."""
    return place(run, quantized_denoiser(run), {}, run.folder("generate")).module


def _float(run: Run, dtype: torch.dtype) -> nn.Module:
    return twin(run.denoiser).to(dtype).eval()


def _step(module: nn.Module, calls: list[dict[str, Any]]) -> Callable[[], list[Tensor]]:
    """One sampling step's calls, in the module's dtype."""
    kind = next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), torch.float32)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    given = [tree_map_only(Tensor, cast, call) for call in calls]
    return partial(_called, module, given)


def _called(module: nn.Module, calls: list[dict[str, Any]]) -> list[Tensor]:
    return [first_tensor(module(**call)) for call in calls]


def _error(ways: Mapping[str, Callable[[], list[Tensor]]]) -> float:
    """Of the step's outputs, relative to float32."""
    found, right = (torch.cat([each.float().flatten() for each in ways[name]()]) for name in (OURS, FLOAT32))
    return float((found - right).norm() / right.norm())


def _growth(before: float | None) -> float | None:
    after = resident_mb()
    return None if before is None or after is None else max(after - before, 0.0)


def _held_mb(module: nn.Module) -> float:
    """MiB of parameters, buffers and what backends packed of them, each storage once."""
    tensors = list(stored_tensors(module))
    for layer in module.modules():
        if isinstance(layer, QuantLayer):
            tree_map_only(Tensor, tensors.append, _parts(layer._packed))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()) / MIB


def _parts(packed: Any) -> Any:
    """Of a backend's own class, its attributes."""
    return packed if isinstance(packed, Tensor | dict | list | tuple) or packed is None else dict(vars(packed))


def _file_bytes(run: Run) -> int | None:
    """Of the file that the engine's model is loaded from; None where it is the unquantized model's own."""
    if run.config.run.name in EXPORTED:
        return folder_bytes(run.folder("generate") / EXPORT)
    folder = run.folder("quantize") / "denoiser" if run.has("quantize") else None
    return folder_bytes(folder) if folder is not None and folder.is_dir() else None


def _record(
    run: Run,
    calls: int,
    seconds: Mapping[str, Seconds],
    peaks: Mapping[str, float | None],
    weights: Mapping[str, float | None],
    error: float,
) -> dict[str, Any]:
    measured = {
        name: {
            "seconds_per_step": found.median,
            "seconds_per_step_minimum": found.minimum,
            "seconds_per_call": found.median / calls,
            "every": list(found.every),
            "n": len(found.every),
            "speed": seconds[FLOAT32].minimum / found.minimum,
            "forward_mb": peaks[name],
            "weights_mb": weights[name],
        }
        for name, found in seconds.items()
    }
    return {
        "processor": provenance.processor_name(),
        "threads": torch.get_num_threads(),
        "batch_size": run.config.model.batch_size,
        "calls_per_step": calls,
        "step_error": error,
        "file_bytes": _file_bytes(run),
        "measured": measured,
    }


def _wanted(config: RunConfig) -> bool:
    return config.speed


SPEED = Stage(
    "speed", _compute, needs=("quantize", "components", "generate"),
    code=("pipelines.sampling", "pipelines.stages.shared.engine", "pipelines.runtime.growth"),
    depends=_depends, when=_wanted,
)  # fmt: skip
"""speed.json: seconds of a sampling step's denoiser calls, its peak memory above what is held, and bytes, of the run's
engine ("run") and of float32 in plain torch, measured in turn on one thread count. No other stage reads it."""
