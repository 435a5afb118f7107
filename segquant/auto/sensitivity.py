"""How much of a layer's error reaches the model's output: makes layers comparable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segquant.checks import checked, described
from segquant.errors import QuantizationError
from segquant.keep import Keeper
from segquant.modules.calls import Progress, call
from segquant.modules.swap import evaluating, swapped
from segquant.modules.tensors import tensors_of

Combine = Callable[[Tensor], Tensor]
"""What a sampler makes of an output [rows, …]: another one, of the same rows or fewer."""


@checked()
def guidance(scale: float) -> Combine:
    """What classifier-free guidance makes of a denoiser's output: u + scale · (c − u).

    The batch holds the rows without prompts u, then as many with them c, as most of diffusers' pipelines stack them.

    Raises:
        QuantizationError: the scale is not finite; when it is called, the rows are odd.
    """
    if not math.isfinite(scale):
        raise QuantizationError(f"guidance by {scale} is none; give the pipeline's guidance_scale, for example 4.0")

    def combine(output: Tensor) -> Tensor:
        if len(output) % 2:
            raise QuantizationError(
                f"guidance stacks as many rows without prompts as with them, and a batch has {len(output)}; leave "
                "`combine` out, or give a function of your own"
            )
        without, with_prompts = output.chunk(2)
        return without + scale * (with_prompts - without)

    return combine


@torch.no_grad()
def output_gains(
    model: nn.Module,
    batches: Sequence[Any],
    layers: Mapping[str, nn.Module],
    rounded: Mapping[str, tuple[nn.Module, float]],
    *,
    combine: Combine | None = None,
    progress: Progress | None = None,
    keep: Keeper | None = None,
) -> dict[str, float]:
    """Relative change of the model's output per relative error of each layer; 0 if never called, or exact.

    One layer at a time is replaced by itself rounded to nearest. Errors of rounding are alike where inputs are, and
    noise of their size reaches the output in other shares. They add up in squares: output error² ≈
    Σ (gain · layer error)².

    Args:
        rounded: by the layer's name, itself rounded, and the relative error of its output on other rows.
        combine: outputs count as the sampler takes them; see `guidance`.
    """
    found: dict[str, float] = {}
    with evaluating(model):
        exact = [_output(model, batch, combine) for batch in batches]
        whole = sum(float(values.square().sum()) for values in exact)
        for done, (name, layer) in enumerate(layers.items(), start=1):
            piece = None if keep is None else keep.get(f"gain {name}")
            if piece is not None:
                found[name] = piece.about
                continue
            other, error = rounded[name]
            with swapped(model, {id(layer): other.eval()}) as changed:
                pairs = zip(exact, (_output(changed, batch, combine) for batch in batches), strict=True)
                change = sum(float((values - truth).square().sum()) for truth, values in pairs)
            found[name] = (change / whole) ** 0.5 / error if whole and error else 0.0
            if keep is not None:
                keep.put(f"gain {name}", {}, found[name])
            if progress is not None:
                progress("sensitivity", done, len(layers))
    return found


def _output(model: nn.Module, batch: Any, combine: Combine | None) -> Tensor:
    outputs = [tensor.double() for tensor in tensors_of(call(model, batch))]
    return torch.cat([_combined(output, combine).flatten() for output in outputs])


def _combined(output: Tensor, combine: Combine | None) -> Tensor:
    found = output if combine is None else combine(output)
    if not isinstance(found, Tensor):
        raise QuantizationError(f"`combine` gave {described(found)}; it gets the model's output and returns a tensor")
    return found
