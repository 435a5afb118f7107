"""What the families of small pipelines share."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from segquant_bench.pipelines.runtime.paths import ZOO
from segquant_bench.pipelines.zoo import data, vae
from segquant_bench.pipelines.zoo.loop import Recipe

log = logging.getLogger(__name__)
SIBLING = ZOO / "emoji_sd3"
SHARD = "14MB"


@dataclass(frozen=True)
class Setting:
    """Where and how long a family trains.

    Attributes:
        work: folder of checkpoints and logs.
        minutes: bound on all trainings together, or None.
        steps: on each, or None.
    """

    work: Path
    output: Path
    device: str
    minutes: float | None = None
    steps: int | None = None

    def recipe(self, recipe: Recipe, share: float) -> Recipe:
        """The recipe within this setting's bounds, `share` of its minutes."""
        minutes = None if self.minutes is None else share * self.minutes
        steps = recipe.steps if self.steps is None else min(recipe.steps, self.steps)
        return replace(recipe, minutes=minutes, steps=steps)


def pictures() -> tuple[torch.Tensor, list[str]]:
    """All pictures, float [n, 3, 64, 64] in −1 … 1, and captions."""
    arrays, listed = data.load_archive()
    return vae.to_tensor(arrays), [picture.caption for picture in listed]


def load_vae() -> AutoencoderKL:
    """The sibling's autoencoder."""
    return AutoencoderKL.from_pretrained(SIBLING / "vae").eval()


def scaled_latents(images: torch.Tensor, shift: bool) -> torch.Tensor:
    """Latents [n, 16, 8, 8] as denoisers see them; `shift` only where the pipeline has one."""
    encoder = load_vae()
    offset = encoder.config.shift_factor if shift else 0.0
    latents: torch.Tensor = (vae.encode(encoder, images) - offset) * encoder.config.scaling_factor
    return latents


@torch.no_grad()
def embedded(encode: Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]], captions: Sequence[str]) -> Any:
    """Words and pooled text of all captions and the empty prompt, by a pipeline's `encode`."""
    parts = [encode(list(captions[start : start + 256])) for start in range(0, len(captions), 256)]
    words, pooled = (torch.cat([part[i].float().cpu() for part in parts]) for i in range(2))
    empty = encode([""])
    return words, pooled, (empty[0][0].float().cpu(), empty[1][0].float().cpu())


def write(pipeline: DiffusionPipeline, output: Path, shared: dict[str, str]) -> None:
    """Write a pipeline's folder in bf16; `shared` components are links to the sibling's."""
    pipeline.to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "pipeline"
        pipeline.save_pretrained(whole, safe_serialization=True, max_shard_size=SHARD)
        for name in shared:
            shutil.rmtree(whole / name)
        output.mkdir(parents=True, exist_ok=True)
        for part in whole.iterdir():
            target = output / part.name
            if part.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            shutil.move(part, target)
    for name, theirs in shared.items():
        link(output / name, SIBLING / theirs)
    log.info("written: %s", output)


def link(folder: Path, source: Path) -> None:
    """Relative links to another folder's files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        os.symlink(os.path.relpath(file, folder), folder / file.name)
