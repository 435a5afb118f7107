"""Cuts of layers as files, and calibration batches."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant.files import write_json
from segquant.graph.segments import Segments
from segquant_bench.pipelines.sampling.samples import Batches, load_samples
from segquant_bench.pipelines.stages.run import Run

if TYPE_CHECKING:
    from segquant.method.spec import Method


FILE = "segments.json"


GRAPH_CODE = ("segquant.graph", "segquant.modules", "pipelines.sampling.samples", "pipelines.stages.shared.segments")


def calibration_depends(run: Run) -> dict[str, Any]:
    return {"batch_size": run.config.calibration.batch_size}


def calibration_batches(run: Run) -> Batches:
    samples = load_samples(run.folder("calibrate") / "calibration")
    return Batches(samples, run.config.calibration.batch_size, run.device)


def some_batches(run: Run, count: int) -> Iterator[dict[str, Any]]:
    """At most `count` of `calibration_batches`, spread over all."""
    batches = calibration_batches(run)
    step = max(1, len(batches) // count)
    return itertools.islice(batches, 0, step * count, step)


def wants_graph(method: Method) -> bool:
    """Whether the method, overrides included, cuts layers or scales by sign."""
    changes = [dict(change) for _, change in method.targets.overrides]
    return method.cuts.wants_graph or any(
        bool(change.get(key)) for change in changes for key in ("seglinear", "dualscale")
    )


def write_segments(path: Path, segments: Mapping[str, Segments]) -> None:
    write_json(path, {name: dataclasses.asdict(entry) for name, entry in segments.items()})


def read_segments(path: Path) -> dict[str, Segments]:
    return {name: Segments(**entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}


def graph_record(folder: Path) -> dict[str, dict[str, Any]]:
    """What a file says of layers that are cut or fed by an activation."""
    entries = json.loads((folder / FILE).read_text(encoding="utf-8"))
    found = {
        name: {key: value for key, value in entry.items() if key != "skip" or value} for name, entry in entries.items()
    }
    return {name: entry for name, entry in found.items() if any(value is not None for value in entry.values())}
