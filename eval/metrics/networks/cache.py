from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from segquant_bench.eval.files import save_tensors
from segquant_bench.eval.metrics.backends import Has
from segquant_bench.eval.metrics.images import batches, content_hash

log = logging.getLogger(__name__)


def cached_features(
    key: str,
    paths: Sequence[Path],
    cache: Path | None,
    compute: Callable[[Sequence[Path]], np.ndarray],
    batch_size: int,
) -> np.ndarray:
    """Features of pictures, remembered by `key` and the pictures' contents.

    Those of every batch are on disk as soon as they are computed, so that a run that was killed goes on behind them.

    Args:
        compute: from a batch to its features [n, d].
        batch_size: which `key` need not name, although last bits may depend on it.
    """
    if cache is None:
        return np.concatenate([compute(batch) for batch in batches(paths, batch_size)])
    whole = _place(cache, key, paths)
    found = _read(whole, len(paths))
    if found is not None:
        return found
    parts, places = [], []
    for batch in batches(paths, batch_size):
        place = _batch_place(cache, key, batch, batch_size)
        features = _read(place, len(batch))
        if features is None:
            features = compute(batch)
            _save(place, features)
        parts.append(features)
        places.append(place)
    found = np.concatenate(parts)
    _save(whole, found)
    for place in places:
        place.unlink(missing_ok=True)
    return found


def keep_part(
    key: str,
    paths: Sequence[Path],
    cache: Path,
    compute: Callable[[Sequence[Path]], np.ndarray],
    batch_size: int,
    has: Has,
) -> None:
    """Compute one's own batches of `cached_features` alone, which another process then finds on disk."""
    if _read(_place(cache, key, paths), len(paths)) is not None:
        return
    for number, batch in enumerate(batches(paths, batch_size)):
        place = _batch_place(cache, key, batch, batch_size)
        if has(number * batch_size, batch_size) and _read(place, len(batch)) is None:
            _save(place, compute(batch))


def _batch_place(folder: Path, key: str, batch: Sequence[Path], batch_size: int) -> Path:
    return _place(folder, f"batch-of-{batch_size}-{key}", batch)


def _place(folder: Path, key: str, paths: Sequence[Path]) -> Path:
    return folder / f"{key}-{content_hash(paths)[:32]}.safetensors"


def _save(path: Path, features: np.ndarray) -> None:
    save_tensors(path, {"features": features}, {"sha256": _digest(features)})


def _digest(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()


def _read(path: Path, n: int) -> np.ndarray | None:
    """Of `n` pictures; None without a file, or one that is damaged."""
    try:
        with safe_open(path, framework="numpy") as stored:
            features: np.ndarray = stored.get_tensor("features")
            told = (stored.metadata() or {}).get("sha256")
        if features.ndim != 2 or len(features) != n or told != _digest(features):
            raise ValueError("its SHA-256 is another, or none is stored")
        return features
    except FileNotFoundError:  # also: another run is done with its batches
        return None
    except (SafetensorError, LookupError, ValueError, TypeError, OSError) as error:
        log.warning("%s is damaged (%s) and is computed again", path, error)
        return None
