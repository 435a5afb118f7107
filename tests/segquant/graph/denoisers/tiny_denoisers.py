"""Every denoiser class that diffusers exports, and a tiny configuration with example inputs for each.

The numbers are our own, as small as each class takes; what the arguments mean was read in diffusers (Apache-2.0).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Example = tuple[dict[str, Any], dict[str, Any]]
"""Configuration of the class, keyword arguments of its forward."""
Table = dict[str, Callable[[], Example]]
STEPS = torch.tensor([10.0, 900.0])
FRACTIONS = torch.tensor([0.1, 0.9])
"""Timesteps of two items: of a thousand steps, and as fractions of the schedule."""
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def r(*shape: int) -> Tensor:
    return torch.randn(*shape)


def grid(height: int, width: int, *, axes: int = 3) -> Tensor:
    """Position of each token of a picture: [height · width, axes], the last two (of three or four) are its place."""
    places = torch.zeros(height, width, axes)
    places[..., 1] = torch.arange(height)[:, None]
    places[..., 2] = torch.arange(width)
    return places.flatten(0, 1)


def latents_and_words() -> dict[str, Tensor]:
    """Two items of 4 × 8 × 8 latents, with five words of width 12."""
    return {"hidden_states": r(2, 4, 8, 8), "encoder_hidden_states": r(2, 5, 12)}


def exported_classes() -> dict[str, type[nn.Module]]:
    """The denoisers among what `diffusers` exports: its models that lie in models.transformers, models.unets or
    models.controlnets, and those beside its pipelines that take a timestep.
    """
    exported = set(diffusers._class_to_module)
    homes = ("transformers", "unets", "controlnets")
    inside = [name for name, home in diffusers.models._class_to_module.items() if home.startswith(homes)]
    # Pipelines are many and slow to import; the few models beside them are told by their names.
    beside = [name for name in exported if name.endswith("Model") and diffusers._class_to_module[name] == "pipelines"]
    found: dict[str, type[nn.Module]] = {}
    for name in sorted(exported.intersection(inside + beside)):
        value = getattr(diffusers, name)
        if not (inspect.isclass(value) and issubclass(value, diffusers.ModelMixin)):
            continue
        timed = any(key.startswith("timestep") for key in inspect.signature(value.forward).parameters)
        if name in inside or timed:
            found[name] = value
    return found
