"""How much of a layer's error reaches the model's output: makes layers comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segquant.keep import Keeper
from segquant.modules.calls import Progress, call
from segquant.modules.swap import evaluating
from segquant.modules.tensors import tensors_of

NOISE = 0.02
"""Size of the noise, as a share of the layer's output: about that of rounding, and far above float error."""


@torch.no_grad()
def output_gains(
    model: nn.Module,
    batches: Sequence[Any],
    layers: Mapping[str, nn.Module],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    keep: Keeper | None = None,
) -> dict[str, float]:
    """Relative change of the model's output per relative change of each layer's output; 0 if never called.

    White noise of NOISE times the output's norm is added to one layer at a time. Errors add up in squares:
    output error² ≈ Σ (gain · layer error)².
    """
    generators: dict[torch.device, torch.Generator] = {}

    def disturb(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        generator = generators.setdefault(output.device, torch.Generator(output.device).manual_seed(seed))
        noise = torch.randn(output.shape, generator=generator, dtype=torch.float32, device=output.device)
        size: Tensor = NOISE * output.float().norm() / noise.norm()
        return output + (size * noise).to(output.dtype)

    found: dict[str, float] = {}
    with evaluating(model):
        exact = [_output(model, batch) for batch in batches]
        whole = sum(float(values.square().sum()) for values in exact)
        for done, (name, layer) in enumerate(layers.items(), start=1):
            piece = None if keep is None else keep.get(f"gain {name}")
            if piece is not None:
                found[name] = piece.about
                continue
            generators.clear()
            handle = layer.register_forward_hook(disturb)
            try:
                pairs = zip(exact, (_output(model, batch) for batch in batches), strict=True)
                change = sum(float((other - values).square().sum()) for values, other in pairs)
            finally:
                handle.remove()
            found[name] = (change / whole) ** 0.5 / NOISE if whole else 0.0
            if keep is not None:
                keep.put(f"gain {name}", {}, found[name])
            if progress is not None:
                progress("sensitivity", done, len(layers))
    return found


def _output(model: nn.Module, batch: Any) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors_of(call(model, batch))])
