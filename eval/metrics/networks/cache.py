from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from segquant_bench.eval.files import save_tensors
from segquant_bench.eval.metrics.images import content_hash

log = logging.getLogger(__name__)


def cached_features(
    key: str, paths: Sequence[Path], cache: Path | None, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """`compute()`, remembered by `key` and the pictures' contents."""
    if cache is None:
        return compute()
    path = Path(cache) / f"{key}-{content_hash(paths)[:32]}.safetensors"
    if path.is_file():
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError) as error:
            log.warning("%s is damaged (%s) and is computed again", path, error)
    features = compute()
    save_tensors(path, {"features": features})
    return features
