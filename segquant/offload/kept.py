"""Finished blocks as pieces of a `Keeper`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from segquant.graph.segments import Segments
from segquant.keep import Keeper
from segquant.layers.kept import kept_layer
from segquant.layers.layer import QuantLayer
from segquant.observers.snapshot import drop_snapshots, has_snapshots
from segquant.quantize.outcome import Outcome
from segquant.quantize.run import SOLVED


@dataclass(frozen=True)
class KeptBlock:
    """Quantized layers by the id of the float one, and what `Outcome` says of them."""

    layers: dict[int, nn.Module]
    segments: dict[str, Segments]
    passes: int


def keep_block(keep: Keeper, model: nn.Module, names: Sequence[str], outcome: Outcome) -> None:
    """Note that all layers of a block are kept that were quantized."""
    done = [name for name in names if isinstance(model.get_submodule(name), QuantLayer)]
    segments = {name: dataclasses.asdict(entry) for name, entry in outcome.segments.items()}
    keep.put("block", {}, {"layers": done, "segments": segments, "passes": outcome.passes})
    drop_snapshots(keep.within(SOLVED), outcome.passes)


def is_begun(keep: Keeper | None) -> bool:
    """Whether calls of a block have been observed, which then are not made again."""
    return keep is not None and has_snapshots(keep.within(SOLVED))


def kept_block(keep: Keeper, model: nn.Module) -> KeptBlock | None:
    """A block that a run before had finished."""
    piece, layers = keep.get("block"), dict[int, nn.Module]()
    if piece is None:
        return None
    for name in piece.about["layers"]:
        old = model.get_submodule(name)
        new = kept_layer(keep.within(SOLVED), name, old)
        if new is None:
            return None
        layers[id(old)] = new.train(old.training)
    segments = {name: Segments(**entry) for name, entry in piece.about["segments"].items()}
    return KeptBlock(layers, segments, piece.about["passes"])
