from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from segquant_bench.pipelines.architectures import Architecture, architecture, build_denoiser, config_of, shipped_for
from segquant_bench.pipelines.architectures.inputs import example_inputs, filled, known_classes
from segquant_bench.pipelines.config.schema import DENOISER
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loading.files import components, read_index
from segquant_bench.pipelines.loading.models import DENOISERS, denoiser_in_index
from segquant_bench.pipelines.plan.call import cached, call_of
from segquant_bench.pipelines.plan.target import made_by

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Source:
    """A module to plan.

    Args:
        component: what `quantize` calls it.
        origin: of its configuration, in words.
        module: on the meta device, or the user's.
        dtype: of the user's module, as a name; else None.
    """

    component: str
    origin: str
    module: nn.Module
    inputs: dict[str, Any]
    dtype: str | None = None


def sources(config: DictConfig) -> list[Source]:
    """One for each component in `config.quantize`.

    Raises:
        PipelineError: a configuration is missing, or cannot be planned.
    """
    model = config.model
    if model.target is not None or model.architecture is not None:
        if list(config.quantize) != [DENOISER]:
            raise PipelineError(
                f"quantize=[{','.join(config.quantize)}], but this model is a single module; leave quantize out"
            )
        if model.target is not None:
            return [_from_target(model)]
        return [_from_shipped(architecture(model.architecture), model)]
    return [_from_pipeline(model, name) for name in config.quantize]


def _given_inputs(model: DictConfig) -> dict[str, Any] | None:
    if model.inputs is None:
        return None
    given = OmegaConf.to_container(model.inputs) if isinstance(model.inputs, DictConfig) else model.inputs
    if not isinstance(given, dict):
        raise PipelineError(f"model.inputs={given} names no arguments; give {{ARGUMENT: SHAPE, …}}")
    shapes = {
        key: {"shape": value} if isinstance(value, list) and all(isinstance(size, int) for size in value) else value
        for key, value in given.items()
    }
    try:
        found: dict[str, Any] = filled(shapes, {}, "meta")
        return found
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise PipelineError(
            f"model.inputs={given} describes no tensors ({one_line(error)}); give shapes, for example "
            "model.inputs={hidden_states: [1, 16, 64, 64]}"
        ) from error


def _from_config(component: str, origin: str, class_name: str, values: Mapping[str, Any], model: DictConfig) -> Source:
    module = build_denoiser(class_name, values)
    given = _given_inputs(model)
    name = type(module).__name__  # an old config.json may name a class that diffusers has since split
    inputs = example_inputs(name, config_of(module), call=call_of(model)) if given is None else given
    return Source(component, origin, module, inputs)


def _from_shipped(found: Architecture, model: DictConfig, component: str = DENOISER) -> Source:
    origin = f"shipped configuration {found.name} ({found.repository})"
    return _from_config(component, origin, found.class_name, found.config, model)


def _from_pipeline(model: DictConfig, component: str) -> Source:
    part = model.parts.get(component)
    place = model if part is None else part
    if place.path is not None:
        return _from_directory(Path(place.path), None if part is not None else component, component, model)
    names = (None,) if part is not None else _folders(model, component)
    for name in names:
        if (file := _cached(place, name)) is not None:
            return _from_file(file, component, model)
    for name in names:
        if (found := shipped_for(place.repo, name)) is not None:
            return _from_shipped(found, model, component)
    return _from_file(_downloaded(place, names, component), component, model)


def _folders(model: DictConfig, component: str) -> tuple[str | None, ...]:
    if component != DENOISER:
        return (component,)
    return (model.denoiser,) if model.denoiser is not None else DENOISERS


def _from_directory(directory: Path, folder: str | None, component: str, model: DictConfig) -> Source:
    if (directory / "config.json").is_file() and not (directory / "model_index.json").is_file():
        return _from_file(directory / "config.json", component, model)
    if folder is None:
        raise PipelineError(f"{directory} has no config.json; set model.parts.{component}.path to the folder that has")
    index = read_index(directory)
    name = denoiser_in_index(index, model.denoiser) if folder == DENOISER else _component(directory, index, folder)
    return _from_file(directory / name / "config.json", component, model)


def _component(directory: Path, index: dict[str, Any], name: str) -> str:
    known = [part for part, kind in components(index) if kind is not None]
    if name not in known:
        there = ", ".join(known) or "empty components"
        raise PipelineError(f"the pipeline in {directory} has no {name}, only {there}; correct quantize")
    return name


def _from_file(file: Path, component: str, model: DictConfig) -> Source:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        class_name = values["_class_name"]
        if not isinstance(class_name, str):
            raise TypeError("it is no text")
    except FileNotFoundError as error:
        raise PipelineError(f"{file} is missing; fetch the model again") from error
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{file} is not readable JSON ({one_line(error)}); fetch the model again") from error
    except (KeyError, TypeError) as error:
        raise PipelineError(
            f"{file} names no class of diffusers (_class_name), so that it is no denoiser and no ControlNet; "
            "set model.denoiser, or correct quantize"
        ) from error
    return _from_config(component, str(file), class_name, values, model)


def _cached(place: DictConfig, folder: str | None) -> Path | None:
    return cached(place.repo, _file(folder), place.revision)


def _file(folder: str | None) -> str:
    return "config.json" if folder is None else f"{folder}/config.json"


def _downloaded(place: DictConfig, folders: tuple[str | None, ...], component: str) -> Path:
    # Put off: only what is not on this machine needs the hub.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    for folder in folders:
        try:
            return Path(hf_hub_download(place.repo, _file(folder), revision=place.revision))
        except GatedRepoError as error:
            raise PipelineError(
                f"{place.repo} is gated: accept its licence on https://huggingface.co/{place.repo}, log in with "
                "`hf auth login`, or set model.path=DIRECTORY of a copy, its JSON files suffice"
            ) from error
        except RepositoryNotFoundError as error:
            raise PipelineError(f"the hub has no repository {place.repo!r} that you may read; correct it") from error
        except (LocalEntryNotFoundError, EntryNotFoundError, OSError, ValueError, RuntimeError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue  # reached, but this folder is not in it
            raise PipelineError(
                f"the configuration of {place.repo} is neither shipped, nor cached here, nor reachable "
                f"({type(error).__name__}); set model.path=DIRECTORY of a copy, its JSON files suffice"
            ) from error
    wanted = " or ".join(_file(folder) for folder in folders)
    raise PipelineError(f"{place.repo} has no {wanted} for its {component}; set model.denoiser to the right folder")


def _from_target(model: DictConfig) -> Source:
    module, given = made_by(model.target)
    described = _given_inputs(model)
    if described is not None:
        given = described
    name = type(module).__name__
    if given is None and name not in known_classes():
        raise PipelineError(
            f"the arguments of {name}.forward are not known; let {model.target} return (module, arguments), or give "
            "model.inputs={ARGUMENT: SHAPE, …}"
        )
    inputs = example_inputs(name, config_of(module)) if given is None else given
    return Source(DENOISER, f"{model.target}()", module, inputs, _dtype(module))


def _dtype(module: nn.Module) -> str | None:
    """The floating dtype that most parameters have."""
    numbers: Counter[str] = Counter()
    for parameter in module.parameters():
        if parameter.is_floating_point():
            numbers[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return max(numbers, key=numbers.__getitem__) if numbers else None
