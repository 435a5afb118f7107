from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segquant_bench.eval.metrics.images import read_rgb


def resizer(size: int) -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's "clean" resizer: uint8 [h, w, 3] → float32 [size, size, 3]."""
    from cleanfid.resize import make_resizer

    found: Callable[[np.ndarray], np.ndarray] = make_resizer("PIL", False, "bicubic", (size, size))
    return found


def load_resized(paths: Sequence[Path], size: int) -> Tensor:
    """float32 [n, 3, size, size] in 0–255."""
    resize = resizer(size)
    return torch.from_numpy(np.stack([resize(read_rgb(path)) for path in paths]).transpose(0, 3, 1, 2).copy())
