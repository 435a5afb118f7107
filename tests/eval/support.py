"""Pictures for the tests of `eval`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ["red", "green", "blue", "round", "square", "apple", "boat", "cat", "door", "egg"]
PROMPTS = [f"{a} {b}" for a in WORDS[:5] for b in WORDS[5:]][:12]


def smooth_pictures(n: int, size: int, seed: int) -> np.ndarray:
    """Low-frequency colour fields, uint8 [n, size, size, 3]: more like pictures than white noise."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        out.append(np.array(coarse.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(out)


def write_pictures(folder: Path, pictures: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:05d}.png")
    return folder


def noisy(pictures: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0.0, sigma, pictures.shape)
    return np.clip(pictures + noise, 0, 255).round().astype(np.uint8)
