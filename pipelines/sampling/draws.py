"""Noise that a pipeline draws without a generator: by prompt, so that no picture depends on its batch.

Control pictures encoded by an autoencoder are such draws, and the steps of DDPM in pipelines that pass no generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

NOISE = "randn_tensor"
"""What diffusers' schedulers and autoencoders draw their noise with."""
Draw = Callable[..., torch.Tensor]


def noise_names(scheduler: Any) -> dict[str, Any]:
    """The globals in which the scheduler's step looks up its noise function."""
    names: dict[str, Any] = inspect.unwrap(type(scheduler).step).__globals__
    return names


@contextmanager
def drawing(names: dict[str, Any], draw: Draw) -> Iterator[None]:
    """`draw` is the noise function of these globals, if they have one."""
    if NOISE not in names:
        yield
        return
    before = names[NOISE]
    names[NOISE] = draw
    try:
        yield
    finally:
        names[NOISE] = before


@contextmanager
def drawn_by_prompt(pipeline: Any, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Draws without a generator come from these, one a prompt.

    Guidance stacks prompts, so an item's rows lie as far apart as there are prompts. Draws that have no rows for every
    prompt are left to torch's own generator.
    """
    from diffusers.models.autoencoders import vae  # put off: seconds

    scheduler = getattr(pipeline, "scheduler", None)
    places = [vars(vae), *([noise_names(scheduler)] if hasattr(type(scheduler), "step") else [])]
    with ExitStack() as stack:
        for names in places:
            if NOISE in names:
                stack.enter_context(drawing(names, _by_prompt(names[NOISE], generators)))
        yield


def _by_prompt(draw: Draw, generators: Sequence[torch.Generator]) -> Draw:
    def drawn(shape: Any, generator: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        count = len(generators)
        if generator is not None or shape[0] % count:
            return draw(shape, generator, *args, **kwargs)
        one = (1, *shape[1:])
        rows = [draw(one, generators[row % count], *args, **kwargs) for row in range(shape[0])]
        return torch.cat(rows)

    return drawn
