from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.failures import AGAIN, Failure, find_failures, load_failure, load_failures
from segquant_bench.eval.failures import FILE as FAILURE
from segquant_bench.eval.files import find_named
from segquant_bench.eval.json_checks import read_checked, require
from segquant_bench.eval.results_file import AGAINST, DIRECTIONS, METRIC, check_results
from segquant_bench.texts import plain

log = logging.getLogger(__name__)

RESULTS = "results.json"
REFERENCE = "reference"
"""The engine that every other one is measured against."""
AUTO = "auto"
"""Kernels of the CPU for what segquant quantized, else the reference."""
Interval = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class EvalResult:
    """One metric of one folder of pictures.

    Attributes:
        name: metric and network: ``fid_ref[effnet_lite0]``, ``psnr``.
        value: may be infinite.
        direction: ``"lower"`` or ``"higher"``, whichever is better.
        interval: 95 % interval, see `metrics.statistics`.
        backend: software and weights, with version.
        against: ``"reference"``, ``"real"``, ``"prompt"``, or None.
        delta: ``value`` minus the unquantized model's own.
    """

    name: str
    value: float
    n: int
    direction: str
    interval: Interval | None
    backend: str
    against: str | None
    delta: float | None = None
    delta_interval: Interval | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise EvalError(f"direction of {self.name} is {self.direction!r}, must be one of {DIRECTIONS}")
        if self.against not in AGAINST:
            raise EvalError(f"against of {self.name} is {self.against!r}, must be one of {AGAINST}")

    def to_dict(self) -> dict[str, Any]:
        """JSON types; infinities become "inf" and "-inf"."""
        return {
            "name": self.name,
            "value": encode_float(self.value),
            "n": self.n,
            "direction": self.direction,
            "interval": _encode_interval(self.interval),
            "backend": self.backend,
            "against": self.against,
            "delta": None if self.delta is None else encode_float(self.delta),
            "delta_interval": _encode_interval(self.delta_interval),
            "unit": self.unit,
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> EvalResult:
        """EvalError for a key that is missing or of another type."""
        require(raw, METRIC, "a metric's entry", f"its keys are {sorted(raw) if isinstance(raw, dict) else 'none'}")
        return cls(
            name=raw["name"],
            value=float(raw["value"]),
            n=raw["n"],
            direction=raw["direction"],
            interval=_decode_interval(raw["interval"]),
            backend=raw["backend"],
            against=raw["against"],
            delta=None if raw.get("delta") is None else float(raw["delta"]),
            delta_interval=_decode_interval(raw.get("delta_interval")),
            unit=raw.get("unit") or "",  # older results have none
        )


def encode_float(value: float) -> float | str:
    """For JSON: "inf" / "-inf" as strings, NaN refused."""
    if math.isnan(value):
        raise EvalError("a metric came out as NaN; look for broken pictures or a broken scorer")
    return str(value) if math.isinf(value) else float(value)


def _encode_interval(interval: Interval | None) -> list[float | str] | None:
    return None if interval is None else [encode_float(edge) for edge in interval]


def _decode_interval(raw: Sequence[float | str] | None) -> Interval | None:
    return None if raw is None else (float(raw[0]), float(raw[1]))


@dataclass(frozen=True)
class RunResult:
    """One `results.json`, whose path is `path`.

    `per_row_steps`, `per_row_prompts` and `per_row_energies` (Σ|Y|²) are those of `per_row_output_errors`;
    `layer_step_errors` are, by layer, those at each of `layer_steps`. `statistics`
    may hold `segments` and `polarity`, by layer. `components` holds every component's bytes, and errors of those beside
    the denoiser. `fingerprint` is the hash of the model's files, empty in older results. `speed` holds seconds and
    memory where they were measured, `kernels` the backends that ran quantized layers. `seed_runs` are those that this
    one stands for, see `report.runs.seeds`; empty of a run on disk. `memo` is that of `report.runs.once`.
    """

    path: Path
    name: str
    model: str
    quantizer: str
    precision: str
    dataset: str
    seed: int
    n_images: int
    config_hash: str
    metrics: tuple[EvalResult, ...]
    layer_errors: dict[str, float]
    per_row_output_errors: tuple[float, ...]
    output_error: float | None
    stages: dict[str, dict[str, Any]]
    artifacts: dict[str, str]
    prompts: tuple[str, ...]
    weight_bytes: int | None
    weight_bytes_float: int | None
    versions: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    git: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    per_row_steps: tuple[int, ...] = ()
    per_row_prompts: tuple[int, ...] = ()
    per_row_energies: tuple[float, ...] = ()
    layer_steps: tuple[int, ...] = ()
    layer_step_errors: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    components: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantizing: tuple[str, ...] = ()
    fingerprint: str = ""
    speed: dict[str, Any] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    seed_runs: tuple[RunResult, ...] = ()
    memo: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def engine(self) -> str:
        """What ran the denoiser; the reference for older runs, and where `auto` had no layer of segquant's."""
        name = str((self.config.get("run") or {}).get("name") or REFERENCE)
        return REFERENCE if name == AUTO and (self.is_float or self.has_own_layers) else name

    @property
    def has_own_layers(self) -> bool:
        """Whether another tool quantized, whose layers run by themselves."""
        quantizer = self.config.get("quantizer")
        target = str(quantizer.get("_target_", "")) if isinstance(quantizer, Mapping) else ""
        return target.rpartition(".")[0].endswith("pipelines.peers")

    @property
    def every_layer_error(self) -> dict[str, float]:
        """The denoiser's, then those of other components."""
        parts = [part.get("layer_errors") or {} for part in self.components.values()]
        return {**self.layer_errors, **{layer: float(error) for part in parts for layer, error in part.items()}}

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.quantizer == "none"

    def metric(self, name: str) -> EvalResult | None:
        return next((m for m in self.metrics if m.name == name), None)

    def folder(self, kind: str) -> Path | None:
        """`artifacts[kind]`, relative to `results.json`; None if not recorded."""
        relative = self.artifacts.get(kind)
        return None if relative is None else (self.path.parent / relative).resolve()


def load_result(path: Path) -> RunResult:
    """EvalError if truncated, of another schema, or if a key is missing or of another type."""
    return result_of(path, checked_results(path))


def checked_results(path: Path) -> dict[str, Any]:
    """The content of a `results.json`; EvalError as `load_result`."""
    found: dict[str, Any] = read_checked(path, check_results, AGAIN)
    return found


def result_of(path: Path, raw: dict[str, Any]) -> RunResult:
    """Of content that was checked, and is changed."""
    _rename(raw)
    output_error, by_step = raw.get("output_error"), raw.get("layer_step_errors") or {}
    return RunResult(
        path=path,
        name=raw["name"],
        model=raw["model"],
        quantizer=raw["quantizer"],
        precision=raw["precision"] or "",
        dataset=raw["dataset"],
        seed=raw["seed"],
        n_images=raw["n_images"],
        config_hash=raw.get("config_hash") or "",
        metrics=tuple(EvalResult.from_dict(entry) for entry in raw["metrics"]),
        layer_errors={k: float(v) for k, v in (raw.get("layer_errors") or {}).items()},
        per_row_output_errors=tuple(float(v) for v in raw.get("per_row_output_errors") or ()),
        output_error=None if output_error is None else float(output_error),
        stages=raw.get("stages") or {},
        artifacts=raw.get("artifacts") or {},
        prompts=tuple(raw["prompts"]),
        weight_bytes=raw.get("weight_bytes"),
        weight_bytes_float=raw.get("weight_bytes_float"),
        versions=raw.get("versions") or {},
        device=raw.get("device") or {},
        git=raw.get("git") or "",
        config=raw.get("config") or {},
        per_row_steps=tuple(raw.get("per_row_steps") or ()),
        per_row_prompts=tuple(raw.get("per_row_prompts") or ()),
        per_row_energies=tuple(float(v) for v in raw.get("per_row_energies") or ()),
        layer_steps=tuple(by_step.get("steps") or ()),
        layer_step_errors={k: tuple(v) for k, v in (by_step.get("layers") or {}).items()},
        statistics=raw.get("statistics") or {},
        components=raw.get("components") or {},
        quantizing=tuple(raw.get("quantizing") or ()),
        fingerprint=raw.get("model_fingerprint") or "",
        speed=raw.get("speed") or {},
        kernels=tuple(raw.get("backend_layers") or ()),
    )


def _rename(raw: dict[str, Any]) -> None:
    """Names that older runs used."""
    stages, config = raw.get("stages") or {}, raw.get("config") or {}
    calibration = config.get("calibration") or {}
    for found, old, new in (
        (stages, "encoders", "components"),
        (config, "encoders", "components"),
        (calibration, "sampler", "timesteps"),
    ):
        if old in found:
            found[new] = found.pop(old)


def load_all(paths: Sequence[Path]) -> list[RunResult]:
    return [load_result(path) for path in paths]


def load_results(
    directories: Iterable[Path],
    skipped: Sequence[Failure] = (),
    load: Callable[[Sequence[Path]], list[RunResult]] = load_all,
) -> list[RunResult]:
    """Every `results.json` at or below the paths, the last of each configuration; not of runs that failed later.

    `skipped` files are passed over; `load` reads the others (see `store`). Different models of one name get the
    beginning of their fingerprints: ``emoji_sd3 (1f2e3d)``.

    Raises:
        EvalError: a path or every `results.json` is missing, or one is broken.
    """
    directories, broken = [Path(d) for d in directories], {each.path for each in skipped}
    paths = [path for path in _find_results(directories) if path not in broken]
    if not paths:
        asked = ", ".join(str(d) for d in directories)
        failed = [*load_failures(directories, broken), *skipped]
        runs = f"{len(failed)} run{'s' * (len(failed) > 1)}"
        why = f" ({runs} failed, the first with: {failed[0].message})" if failed else ""
        raise EvalError(f"no results.json below {asked}{why}; give the run or sweep folder of a finished run")
    return _told_apart(_drop_repeats(load(paths)))


def beside_broken(directories: Sequence[Path], work: Callable[[Sequence[Failure]], T]) -> tuple[T, list[Failure]]:
    """What `work` gives beside broken files, and these; they are looked for only where it meets one.

    Args:
        work: called with the broken files that it is to leave out.

    Raises:
        EvalError: what `work` raises with them left out, or where there are none.
    """
    try:
        return work([]), []
    except EvalError:
        skipped = find_unreadable(directories)
        if not skipped:
            raise
    return work(skipped), skipped


def find_unreadable(directories: Sequence[Path]) -> list[Failure]:
    """Every broken `results.json` and `failure.json`, with what is wrong with it."""
    found = []
    for load, paths in ((load_result, _find_results(directories)), (load_failure, find_failures(directories))):
        for path in paths:
            try:
                load(path)
            except EvalError as error:
                found.append(Failure(path, "", "", "", "", "", (), str(error)))
    return found


def _find_results(directories: Iterable[Path]) -> list[Path]:
    paths: set[Path] = set()
    for directory in directories:
        if directory.is_file() and directory.name == RESULTS:
            paths.add(directory.resolve())
        elif directory.is_dir():
            paths.update(path.resolve() for path in find_named(directory, RESULTS))
        else:
            raise EvalError(f"{directory} is no directory; give the run or sweep folder that segquant wrote")
    return sorted(path for path in paths if not (path.parent / FAILURE).is_file())


def _drop_repeats(runs: Sequence[RunResult]) -> list[RunResult]:
    kept: dict[object, RunResult] = {}
    for run in sorted(runs, key=lambda r: r.path.stat().st_mtime):
        key: object = run.config_hash or run.path
        if key in kept:
            paths = (plain(str(each.path)) for each in (run, kept[key]))
            log.warning("%s repeats the configuration of %s; the later one is shown", *paths)
        kept[key] = run
    return list(kept.values())


def _told_apart(runs: Sequence[RunResult]) -> list[RunResult]:
    files: dict[str, set[str]] = {}
    for run in runs:
        files.setdefault(run.model, set()).add(run.fingerprint)
    return [run if len(files[run.model]) == 1 else _named_by_files(run, files[run.model]) for run in runs]


def _named_by_files(run: RunResult, others: Collection[str]) -> RunResult:
    length = next((n for n in range(6, 64) if len({other[:n] for other in others}) == len(others)), 64)
    return replace(run, model=f"{run.model} ({run.fingerprint[:length] or 'files not recorded'})")
