"""What the files of a run's configuration hold, for its hash."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segquant_bench.eval.metrics.networks.clip_source import CONFIG_FILE
from segquant_bench.pipelines.config.sections import INCEPTION_FILE, BackendsConfig
from segquant_bench.pipelines.runtime import digests
from segquant_bench.pipelines.runtime.paths import is_shipped
from segquant_bench.pipelines.stages.shared.inputs import STREAMS

if TYPE_CHECKING:
    from segquant_bench.pipelines.stages.run import Run

WEIGHTS = (".json", ".safetensors", ".txt", ".bpe", ".gz", ".pt", ".bin")
"""Files that a network is read from."""


def network_digests(backends: BackendsConfig) -> dict[str, str]:
    """By key, a hash of each network that has a path; of one that is not there, the path."""
    found = {}
    if backends.inception is not None:
        path = Path(backends.inception)
        found["inception"] = _digest(path / INCEPTION_FILE if path.is_dir() else path)
    if backends.clip_path is not None:
        found["clip_path"] = _digest(Path(backends.clip_path))
    return found


def _digest(path: Path) -> str:
    # A folder without a scorer is refused later: it may be anything, the whole disk too.
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return digests.tree_digest(path, WEIGHTS)
    return digests.file_digest(path) if path.is_file() else str(path)


def file_contents(run: Run) -> dict[str, str]:
    """By key, hashes of the networks that judge and of the pictures that the numbers depend on.

    Shipped files are left out: their names say what they hold, and hashes of earlier results stay.
    """
    config, backends = run.config, run.config.metric.backends
    found = {key: digest for key, digest in network_digests(backends).items() if not is_shipped(getattr(backends, key))}
    if is_shipped(config.dataset.archive):
        return found
    if run.has("real") and run.dataset.digest is not None:
        found["real"] = run.dataset.digest
    if config.model.control is not None:
        splits = ("evaluation",) if config.is_float else ("evaluation", *STREAMS)
        found |= {f"control.{split}": run.dataset.pictures_digest(split) for split in splits}
    return found
