"""Judged layers as pieces of a `Keeper`."""

from __future__ import annotations

from dataclasses import asdict

from segquant.auto.budget import Candidate, Layer
from segquant.keep import Keeper


def keep_candidates(keep: Keeper | None, layer: Layer) -> None:
    if keep is not None:
        found = [asdict(candidate) for candidate in layer.candidates]
        about = {"plain": asdict(layer.plain), "found": found, "weights": layer.weights}
        keep.put(f"candidates {layer.name}", {}, about)


def kept_candidates(keep: Keeper | None, name: str) -> Layer | None:
    """A layer that was judged before."""
    piece = None if keep is None else keep.get(f"candidates {name}")
    if piece is None:
        return None
    plain, *others = (Candidate(**entry) for entry in (piece.about["plain"], *piece.about["found"]))
    return Layer(name, plain, others, piece.about["weights"])
