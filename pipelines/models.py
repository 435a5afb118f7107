"""Load a diffusers pipeline by configuration, from a local directory or the hub, and find its denoiser."""

from __future__ import annotations

import inspect
import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import PipelineError, nearest, one_line
from pipelines.measure import tree_digest
from pipelines.sections import ModelConfig

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

log = logging.getLogger(__name__)

DENOISERS = ("transformer", "unet")
_WEIGHTLESS = ("scheduler", "tokenizer", "feature_extractor", "processor")


def resolve_device(device: str) -> str:
    """ "auto" is "cuda" where a CUDA device is usable, else "cpu"; anything else must be usable as it is."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(
            f"model.device={device!r} cannot be used here ({one_line(error)}); set model.device=cpu"
        ) from error
    return device


def resolve_directory(config: ModelConfig) -> Path:
    """The pipeline's directory on this machine, downloaded from the hub if only `repo` is given.

    Raises:
        PipelineError: no such directory, no diffusers pipeline in it, files missing or truncated, no network.
    """
    directory = Path(config.path) if config.path is not None else _download(config)
    check_directory(directory, config.variant)
    return directory


def _download(config: ModelConfig) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    repo, help_text = (
        config.repo,
        f"run `hf download {config.repo}` where there is a network, or set model.path=DIRECTORY",
    )
    try:
        return Path(DiffusionPipeline.download(repo, revision=config.revision, variant=config.variant))
    except GatedRepoError as error:
        raise PipelineError(
            f"{repo} is gated: accept its licence on https://huggingface.co/{repo}, log in with "
            "`hf auth login`, or set model.path=DIRECTORY of a copy"
        ) from error
    except RepositoryNotFoundError as error:
        raise PipelineError(
            f"the hub has no repository {repo!r} that you may read; correct model.repo, or {help_text}"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise PipelineError(
            f"model {config.name} needs {repo}, which is neither cached here nor reachable; {help_text}"
        ) from error


def read_index(directory: Path) -> dict[str, Any]:
    """The parsed model_index.json of a pipeline directory."""
    help_text = "set model.path to the folder that holds a diffusers pipeline's model_index.json"
    if not directory.is_dir():
        raise PipelineError(f"model directory {directory} does not exist; {help_text}")
    file = directory / "model_index.json"
    if not file.is_file():
        raise PipelineError(f"{directory} is no diffusers pipeline, it has no model_index.json; {help_text}")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{file} is not readable JSON ({one_line(error)}); fetch the model again") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise PipelineError(f"{file} names no pipeline class (_class_name); {help_text}")
    return index


def _components(index: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2:
            yield name, entry[1]


def check_directory(directory: Path, variant: str | None = None) -> None:
    """Refuse a directory that from_pretrained would stumble over, with a component or part of one missing."""
    for name, class_name in _components(read_index(directory)):
        if class_name is None:
            continue
        folder = directory / name
        if not folder.is_dir():
            raise PipelineError(f"{directory} lacks its component {name!r} ({class_name}); fetch the model again")
        if any(word in name for word in _WEIGHTLESS):
            continue
        files = list(_weight_files(folder, variant))
        if not files:
            raise PipelineError(f"{folder} has no safetensors file for {class_name}; fetch the model again")
        for file in files:
            check_safetensors(file)


def _weight_files(folder: Path, variant: str | None) -> Iterator[Path]:
    """The safetensors of a component; for sharded weights those that its index names."""
    indexes = sorted(folder.glob("*.safetensors.index*.json"))
    for index in indexes:
        for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
            yield folder / name
    if not indexes:
        middle = f".{variant}" if variant else ""
        yield from sorted(folder.glob(f"*{middle}.safetensors"))


def check_safetensors(file: Path) -> None:
    """Refuse a missing or truncated safetensors file: its header says how long it must be."""
    if not file.is_file():
        raise PipelineError(f"{file} is missing; fetch the model again")
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        expected = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"{file} is no whole safetensors file, its header cannot be read; fetch the model again"
        ) from error
    if size != expected:
        raise PipelineError(f"{file} is truncated, it has {size} of {expected} bytes; fetch the model again")


def fingerprint(directory: Path) -> str:
    """A hash of a pipeline's weights and configurations, wherever it lies; the model card is not in it."""
    return tree_digest(directory, (".json", ".safetensors", ".txt", ".model"))


def load_pipeline(config: ModelConfig, directory: Path) -> DiffusionPipeline:
    """The pipeline of `directory` in `config.dtype` on `config.device`, quiet, in evaluation mode.

    Components that the index leaves empty (SD3 without its third text encoder) are passed on as None, which
    from_pretrained asks for.
    """
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for module in (diffusers_logging, transformers_logging):
        module.set_verbosity_error()
        module.disable_progress_bar()
    empty = {name: None for name, class_name in _components(read_index(directory)) if class_name is None}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            directory,
            dtype=getattr(torch, config.dtype),
            variant=config.variant,
            use_safetensors=True,
            local_files_only=True,
            **empty,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise PipelineError(f"diffusers cannot load {directory}: {one_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    check_call(pipeline, config)
    return pipeline.to(resolve_device(config.device))


def check_call(pipeline: DiffusionPipeline, config: ModelConfig) -> None:
    """Refuse an argument in `model.call` that the pipeline's `__call__` does not take."""
    known = inspect.signature(type(pipeline).__call__).parameters
    for key in config.call.arguments():
        if key not in known:
            name = type(pipeline).__name__
            raise PipelineError(f"{name} takes no {key!r} (model.call.{key}); {nearest(key, set(known) - {'self'})}")


def denoiser_name(pipeline: DiffusionPipeline, name: str | None) -> str:
    """The attribute of the denoiser: `name` if given, else "transformer" or "unet", whichever is there."""
    names = (name,) if name else DENOISERS
    for candidate in names:
        if isinstance(pipeline.components.get(candidate), _module_class()):
            return candidate
    modules = [key for key, value in pipeline.components.items() if isinstance(value, _module_class())]
    wanted = name or " or ".join(DENOISERS)
    raise PipelineError(
        f"{type(pipeline).__name__} has no denoiser {wanted!r}; set model.denoiser to one of " + ", ".join(modules)
    )


def _module_class() -> type[torch.nn.Module]:
    import torch

    return torch.nn.Module
