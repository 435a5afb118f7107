"""A resumable training loop with warm-up, decay and averaging."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """`steps` of `batch` samples, peak rate `lr` after `warmup` steps, then cosine decay.

    `minutes` bounds the wall clock, which may speed up the decay. `average` is the decay of the weights' average.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    minutes: float | None = None
    average: float = 0.0
    weight_decay: float = 0.0
    muon: bool = False
    floor: float = 0.01


class FlatMuon(torch.optim.Muon):
    """Muon on kernels too: [out, in, h, w] as [out, in · h · w] (contiguous)."""

    def __init__(self, params: Sequence[nn.Parameter], lr: float, **settings: Any) -> None:
        self.kernels = list(params)
        super().__init__([p.detach().view(len(p), -1).requires_grad_() for p in params], lr, **settings)
        self.flat = self.param_groups[0]["params"]

    def step(self, closure: Any = None) -> Any:
        """One step; matrices share the kernels' memory."""
        for flat, kernel in zip(self.flat, self.kernels, strict=True):
            flat.grad = None if kernel.grad is None else kernel.grad.reshape(flat.shape)
        return super().step(closure)  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of kernels and matrices."""
        super().zero_grad(set_to_none)
        for kernel in self.kernels:
            kernel.grad = None


def optimizers(module: nn.Module, recipe: Recipe, hidden: Callable[[str], bool]) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for matrices where `hidden(name)`, AdamW for the rest."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    muon = [p for n, p in named if recipe.muon and p.ndim in (2, 4) and hidden(n)]
    chosen = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in chosen]
    parts: list[torch.optim.Optimizer] = []
    if rest:
        parts.append(torch.optim.AdamW(rest, recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay))
    if muon:
        parts.append(FlatMuon(muon, recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return parts


def rate(progress: float, step: int, recipe: Recipe) -> float:
    """Factor on the peak rate: linear warm-up, cosine decay to `floor`."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    return warm * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write beside the target, then rename."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[int], torch.Tensor],
    recipe: Recipe,
    folder: Path,
    hidden: Callable[[str], bool] = lambda _: True,
    checkpoint_seconds: float = 180.0,
) -> nn.Module:
    """Train `module` in place and return it, averaged if the recipe says so.

    `loss(step)` must depend on `step` alone, for resuming. Checkpoints and a JSON-lines log lie in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, record = folder / f"{name}.pt", folder / f"{name}.jsonl"
    parts = optimizers(module, recipe, hidden)
    average = {k: v.detach().clone().float() for k, v in module.state_dict().items()} if recipe.average else None
    start, spent = 0, 0.0
    if path.exists():
        start, spent, average = _resume(path, module, parts)
        log.info("%s: resumed at step %d", name, start)
    began, saved_at, running = time.monotonic() - spent, time.monotonic(), None
    done, limit = start, (recipe.minutes or math.inf) * 60

    def save() -> None:
        state = {"module": module.state_dict(), "optimizers": [p.state_dict() for p in parts], "step": done}
        save_atomically({**state, "average": average, "spent": time.monotonic() - began}, path)

    for step in (bar := tqdm(range(start, recipe.steps), desc=name, initial=start, total=recipe.steps, mininterval=10)):
        elapsed = time.monotonic() - began
        if elapsed > limit:
            break
        factor = rate(max(step / recipe.steps, elapsed / limit), step, recipe)
        value = _descend(module, parts, loss(step), recipe.lr * factor)
        done = step + 1
        if average is not None:
            _update(average, module, min(recipe.average, (1 + step) / (10 + step)))
        running = value if running is None else 0.98 * running + 0.02 * value
        if step % 50 == 49:
            bar.set_postfix(loss=f"{running:.4f}")
            with record.open("a") as file:
                file.write(json.dumps({"step": step + 1, "loss": running, "seconds": elapsed}) + "\n")
        if time.monotonic() - saved_at > checkpoint_seconds:
            save()
            saved_at = time.monotonic()
    save()
    if average is not None:
        module.load_state_dict(average)
    return module.eval()


def _descend(
    module: nn.Module, parts: Sequence[torch.optim.Optimizer], loss: torch.Tensor, learning_rate: float
) -> float:
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for part in parts:
        for group in part.param_groups:
            group["lr"] = learning_rate
        part.step()
        part.zero_grad()
    return loss.item()


def _resume(
    path: Path, module: nn.Module, parts: Sequence[torch.optim.Optimizer]
) -> tuple[int, float, dict[str, torch.Tensor] | None]:
    """Load a checkpoint; returns finished steps, seconds and the average."""
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    for part, saved in zip(parts, state["optimizers"], strict=True):
        part.load_state_dict(saved)
    return state["step"], state["spent"], state["average"]


@torch.no_grad()
def _update(average: dict[str, torch.Tensor], module: nn.Module, decay: float) -> None:
    current = module.state_dict()
    kept: Sequence[str] = [k for k in average if current[k].is_floating_point()]
    torch._foreach_lerp_([average[k] for k in kept], [current[k].float() for k in kept], 1 - decay)
