"""Published denoisers as JSON, without weights."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant_bench.hints import nearest
from segquant_bench.pipelines.architectures.inputs import INPUTS, example_inputs
from segquant_bench.pipelines.errors import PipelineError, one_line

if TYPE_CHECKING:
    from torch import nn

LARGEST = 10_000
"""Parameters and buffers that a configuration without weights may ask for; published denoisers have a fifth of it."""
FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Architecture:
    """One denoiser, without its weights.

    Args:
        component: of the repository, None where it is this one model.
        licence: of its weights.
        note: further remarks, or empty.
    """

    name: str
    repository: str
    component: str | None
    licence: str
    class_name: str
    config: Mapping[str, Any]
    note: str = ""


def architecture_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json") if path.name != INPUTS.name))


def architecture(name: str, **changes: Any) -> Architecture:
    """A shipped configuration, with `changes` to its config.

    Raises:
        PipelineError: an unknown name or change.
    """
    if name not in architecture_names():
        raise PipelineError(f"no configuration of {name!r} is shipped; {nearest(name, architecture_names())}")
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    content["class_name"] = content.pop("class")
    found = Architecture(name=name, **content)
    known = set(inspect.signature(denoiser_class(found.class_name).__init__).parameters) - {"self"}
    for key in changes:
        if key not in known:
            raise PipelineError(f"{found.class_name} takes no {key!r}; {nearest(key, known)}")
    return dataclasses.replace(found, config={**found.config, **changes})


def shipped_for(repository: str, component: str | None) -> Architecture | None:
    everything = map(architecture, architecture_names())
    return next((each for each in everything if (each.repository, each.component) == (repository, component)), None)


def denoiser_class(class_name: str) -> type[nn.Module]:
    """A class of diffusers.

    Raises:
        PipelineError: diffusers has none.
    """
    import diffusers  # put off: slow, and a finished run needs none of it

    found = getattr(diffusers, class_name, None)
    if not isinstance(found, type):
        raise PipelineError(f"diffusers {diffusers.__version__} has no class {class_name!r}; install one that has it")
    return found


def build_denoiser(class_name: str, config: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """An untrained module in evaluation mode; no weights on "meta".

    Raises:
        PipelineError: no such class, or a bad config.
    """
    import torch  # put off: slow, and a finished run needs none of it

    from segquant.modules.bounded import bounded_building

    kind: Any = denoiser_class(class_name)
    try:
        with bounded_building(LARGEST), torch.device(device):
            model: nn.Module = kind.from_config(dict(config)).eval()
            return model
    except Exception as error:  # whatever a class raises on a configuration that it did not write
        told = one_line(error) or type(error).__name__
        raise PipelineError(f"{class_name} cannot be built from its configuration: {told}") from error


def meta_denoiser(name: str, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A shipped denoiser on the meta device, and its forward's keyword arguments, both after `changes`.

    Raises:
        PipelineError: as `architecture`.
    """
    found = architecture(name, **changes)
    model = build_denoiser(found.class_name, found.config)
    return model, example_inputs(found.class_name, config_of(model))


def config_of(model: nn.Module) -> Mapping[str, Any]:
    """The configuration, defaults filled in.

    Raises:
        PipelineError: there is none.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping):
        raise PipelineError(
            f"{type(model).__name__} has no configuration (config) to take its arguments' sizes from; give them as "
            "model.inputs={ARGUMENT: SHAPE, …}"
        )
    return config
