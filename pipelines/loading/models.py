from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.sections import ModelConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loading.call_inputs import check_inputs
from segquant_bench.pipelines.loading.code_names import check_names
from segquant_bench.pipelines.loading.components import offload_components
from segquant_bench.pipelines.loading.files import (
    check_directory,
    check_room,
    check_safetensors,
    components,
    fingerprint,
    quieten,
    read_index,
    resolve_directory,
    resolve_part,
)
from segquant_bench.pipelines.loading.ready import check_ready
from segquant_bench.pipelines.loading.whole import whole_weights
from segquant_bench.pipelines.runtime import own_code

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "check_directory",
    "check_safetensors",
    "denoiser_in_index",
    "denoiser_name",
    "diffusers_class",
    "fingerprint",
    "load_denoiser",
    "load_pipeline",
    "read_index",
    "resolve_device",
    "resolve_directory",
    "text_components",
]

log = logging.getLogger(__name__)

_SHOWN = 100
"""Characters of a name in a sentence."""
DENOISERS = ("transformer", "unet")
NO_DENOISERS = ("text_encoder", "image_encoder", "vae", "vqvae", "movq", "safety_checker", "controlnet", "adapter")
"""Beginnings of the names of other components that have weights."""


def resolve_device(device: str) -> str:
    """ "auto" is "cuda" where usable, else "cpu"; others must be usable, and hold numbers."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError, ImportError) as error:
        raise _no_device(device) from error
    if found == "meta":
        raise _no_device(device)
    return device


def _no_device(device: str) -> PipelineError:
    """What torch itself says of one lists every kernel that it has."""
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    return PipelineError(
        f"model.device={one_line(device)[:_SHOWN]!r} cannot be used here; set model.device={', '.join(there)} or auto"
    )


def text_components(index: Mapping[str, Any]) -> dict[str, None]:
    """The text encoders, as arguments that leave them out."""
    return {name: None for name, kind in components(index) if "text_encoder" in name and kind is not None}


def load_pipeline(
    config: ModelConfig, directory: Path, given: Mapping[str, Any] | None = None, *, place: bool = True
) -> DiffusionPipeline:
    """The pipeline in `config.dtype` on `config.device`, in evaluation mode.

    Args:
        config: its `pipeline`, `parts` and `scheduler` go first.
        given: components to use; None leaves one out.
        place: move it, as `config.offload` says.

    Raises:
        PipelineError: no such denoiser, diffusers cannot load it, bad `config.call`, or too little memory.
    """
    quieten()
    index = read_index(directory)
    check_names(config, directory, index)
    parts = {name: [part.kind, part.kind] for name, part in config.parts.items()}
    denoiser = denoiser_in_index({**index, **parts}, config.denoiser)
    empty = {name: None for name, kind in components(index) if kind is None}
    given = {**empty, **(given or {})}
    device = resolve_device(config.device)
    check_room(config, directory, given, device, denoiser)
    loaded = {name: _load_part(name, config) for name in config.parts if name not in given}
    kind = _pipeline_class(config)
    with whole_weights(directory, _weighted(directory, index, {**loaded, **given}), config.variant):
        pipeline = kind.from_pretrained(
            directory,
            dtype=getattr(torch, config.dtype),
            variant=config.variant,
            use_safetensors=True,
            local_files_only=True,
            **loaded,
            **given,
        )
    pipeline.set_progress_bar_config(disable=True)
    check_call(type(pipeline), config)
    _set_scheduler(pipeline, config)
    check_ready(pipeline, directory, config.call.arguments().get("num_inference_steps"))
    check_inputs(pipeline, config.call.arguments())
    return _placed(pipeline, config, device, given) if place else pipeline


def _weighted(directory: Path, index: Mapping[str, Any], given: Collection[str]) -> list[Path]:
    """The folders of components that are loaded from there."""
    names = [name for name, kind in components(index) if kind is not None and name not in given]
    return [directory / name for name in names if (directory / name).is_dir()]


def named_class(name: str, key: str, kind: str) -> Any:
    """A class of diffusers, or the user's by dotted path.

    Args:
        name: from the configuration, never a model's files.
        key: where it stands there.
        kind: the diffusers class to derive from.

    Raises:
        PipelineError: none, or of another kind.
    """
    if "." not in name:
        return diffusers_class(name, key)
    import diffusers  # seconds; put off until a model is loaded

    found, base = own_code.find(name, key), getattr(diffusers, kind)
    if not inspect.isclass(found) or not issubclass(found, base):
        raise PipelineError(f"{key}={name} is no {kind}; derive the class from diffusers.{kind}")
    return found


def diffusers_class(name: str, key: str) -> Any:
    """A class of diffusers or a pipeline of ours; its name may be from a model's files."""
    import diffusers  # put off: slow, and a finished run needs none of it

    from segquant_bench.pipelines.loading import class_prompts

    found = getattr(class_prompts, name, None) or getattr(diffusers, name, None)
    if not inspect.isclass(found) or not hasattr(found, "load_config"):
        kinds = [item for item in dir(diffusers) if item.endswith(("Pipeline", "Model", "Scheduler"))]
        raise PipelineError(f"{key}={name[:_SHOWN]} is no class of diffusers; {nearest(name[:_SHOWN], kinds)}")
    return found


def _pipeline_class(config: ModelConfig) -> Any:
    return named_class(config.pipeline or "DiffusionPipeline", "model.pipeline", "DiffusionPipeline")


def _load_part(name: str, config: ModelConfig) -> torch.nn.Module:
    part = config.parts[name]
    folder, kind = resolve_part(name, part), named_class(part.kind, f"model.parts.{name}.kind", "ModelMixin")
    return _load_module(kind, folder, part.variant, getattr(torch, config.dtype))


def _load_module(kind: Any, folder: Path, variant: str | None, dtype: torch.dtype) -> torch.nn.Module:
    with whole_weights(folder, [folder], variant):
        module: torch.nn.Module = kind.from_pretrained(
            folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
        )
    return module


def _set_scheduler(pipeline: DiffusionPipeline, config: ModelConfig) -> None:
    if config.scheduler is None and not config.scheduler_settings:
        return
    kind = scheduler_class(config, type(pipeline.scheduler))
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **config.scheduler_settings)


def scheduler_class(config: ModelConfig, kind: Any) -> Any:
    """The scheduler's class, `kind` unless the configuration names another.

    Raises:
        PipelineError: no such scheduler, or a setting that it does not take.
    """
    if config.scheduler is not None:
        kind = named_class(config.scheduler, "model.scheduler", "SchedulerMixin")
    if not hasattr(kind, "set_timesteps"):
        raise PipelineError(f"model.scheduler={config.scheduler} is no scheduler; name one of diffusers' schedulers")
    known = inspect.signature(kind.__init__).parameters
    for key in config.scheduler_settings:
        if key not in known:
            hint = nearest(key, set(known) - {"self"})
            raise PipelineError(f"{kind.__name__} takes no {key!r} (model.scheduler_settings.{key}); {hint}")
    return kind


def _placed(
    pipeline: DiffusionPipeline, config: ModelConfig, device: str, given: Mapping[str, Any]
) -> DiffusionPipeline:
    if config.offload == "components":
        offload_components(pipeline, device, [name for name, part in given.items() if part is not None])
        return pipeline
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and given.get(name) is None:
            module.to(device)
    return pipeline


def check_call(kind: Any, config: ModelConfig) -> None:
    """Refuse an argument that the `__call__` of a pipeline's class does not take."""
    known = inspect.signature(kind.__call__).parameters
    if any(item.kind is item.VAR_KEYWORD for item in known.values()):
        return  # one's own class that hands on what it is given
    for key in config.call.arguments():
        if key not in known:
            name = kind.__name__
            raise PipelineError(f"{name} takes no {key!r} (model.call.{key}); {nearest(key, set(known) - {'self'})}")


def denoiser_name(pipeline: DiffusionPipeline, name: str | None) -> str:
    """`name` if given, else "transformer" or "unet"."""
    parts = pipeline.components.items()
    modules = [key for key, value in parts if isinstance(value, torch.nn.Module)]
    return _denoiser_among(type(pipeline).__name__, modules, name)


def denoiser_in_index(index: Mapping[str, Any], name: str | None) -> str:
    """As `denoiser_name`, from model_index.json."""
    weightless = ("scheduler", "tokenizer", "feature_extractor", "processor")
    modules = [
        part for part, kind in components(index) if kind is not None and not any(word in part for word in weightless)
    ]
    return _denoiser_among(str(index["_class_name"]), modules, name)


def _denoiser_among(pipeline: str, modules: Collection[str], name: str | None) -> str:
    modules = [module for module in modules if not module.startswith(NO_DENOISERS)]
    for candidate in (name,) if name else DENOISERS:
        if candidate in modules:
            return candidate
    wanted = name or " or ".join(DENOISERS)
    raise PipelineError(
        f"{pipeline} has no denoiser {wanted!r}; set model.denoiser to one of " + (", ".join(modules) or "(none here)")
    )


def load_denoiser(config: ModelConfig, directory: Path) -> torch.nn.Module:
    """The denoiser alone, in evaluation mode.

    Raises:
        PipelineError: none is named, or diffusers cannot load it.
    """
    kind, folder = denoiser_class(config, directory)
    quieten()
    others = dict.fromkeys(name for name, _ in components(read_index(directory)) if name != folder.name)
    device = resolve_device(config.device)
    check_room(config, directory, {**others, **config.parts}, device, folder.name)
    return _load_module(kind, folder, config.variant, getattr(torch, config.dtype)).to(device).eval()


def denoiser_class(config: ModelConfig, directory: Path) -> tuple[Any, Path]:
    index = read_index(directory)
    name = denoiser_in_index(index, config.denoiser)
    kind = diffusers_class(index[name][1], f"the class of {name} in {directory / 'model_index.json'}")
    return kind, directory / name
