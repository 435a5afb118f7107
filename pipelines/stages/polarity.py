"""The stage of the signs of activations (Table 1 of arXiv 2507.14811), with `polarity=true`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from segquant.files import write_json
from segquant.graph.segments import Segments
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.segments import FILE as SEGMENTS
from segquant_bench.pipelines.stages.shared.segments import calibration_batches, calibration_depends, read_segments

FILE = "polarity.json"


def activation_pieces(segments: Segments, width: int) -> Iterator[tuple[str, slice]]:
    """Name and input channels of every piece that an activation feeds."""
    if segments.activation is not None:
        yield segments.activation, slice(0, width)
        return
    starts = accumulate(segments.input or (), initial=0)
    for start, size, name in zip(starts, segments.input or (), segments.input_activations or (), strict=False):
        if name is not None:
            yield name, slice(start, start + size)


def polarity(
    model: torch.nn.Module, segments: Mapping[str, Segments], batches: Iterable[Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Signs of the inputs of layers that an activation feeds, in one pass.

    Returns:
        by called layer, for every such piece: `activation`, `channels`, `rows` seen, `mostly_negative` and
        `mostly_positive` (shares of channels with more than half of their values below, or above, zero), `negative`
        and `positive` (shares of all values).
    """
    counts: dict[str, dict[str, Any]] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            _count(counts.setdefault(name, {"rows": 0})), with_kwargs=True
        )
        for name, entry in segments.items()
        if entry.activation is not None or any(entry.input_activations or ())
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _pieces(found, segments[name]) for name, found in counts.items() if found["rows"]}


def _count(found: dict[str, Any]) -> Callable[..., None]:
    def hook(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        if isinstance(layer, torch.nn.Conv2d):
            x = x.movedim(-3, -1)  # its channels are on the second dimension of NCHW
        rows = x.reshape(-1, x.shape[-1])
        found["rows"] += len(rows)
        for side, signs in (("negative", rows < 0), ("positive", rows > 0)):
            found[side] = found.get(side, 0) + signs.sum(0).cpu()

    return hook


def _pieces(found: dict[str, Any], segments: Segments) -> list[dict[str, Any]]:
    rows, records = found["rows"], []
    for name, piece in activation_pieces(segments, len(found["negative"])):
        record: dict[str, Any] = {"activation": name, "channels": piece.stop - piece.start, "rows": rows}
        for side in ("negative", "positive"):
            counts = found[side][piece]
            record[f"mostly_{side}"] = float((2 * counts > rows).double().mean())
            record[side] = float(counts.double().mean() / rows)
        records.append(record)
    return records


def _wanted(config: RunConfig) -> bool:
    return config.polarity and config.quantizes_denoiser


def _compute(run: Run, folder: Path) -> None:
    segments = read_segments(run.folder("graph") / SEGMENTS)
    write_json(folder / FILE, polarity(run.denoiser, segments, calibration_batches(run)))


POLARITY = Stage(
    "polarity", _compute, needs=("calibrate", "graph"), code=("pipelines.sampling.samples",),
    depends=calibration_depends, when=_wanted,
)  # fmt: skip
"""polarity.json: shares of channels and values by sign, by layer."""
