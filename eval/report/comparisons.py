"""Paired differences between methods on the same model, prompts, latents and precision, in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.statistics import Difference, paired_mean_difference, paired_replicate_difference
from segquant_bench.eval.report.columns import REPLICATES
from segquant_bench.eval.report.labels import (
    group_key,
    is_ours,
    labels,
    method_name,
    places,
    prompts_name,
    quantized_parts,
    sort_runs,
)
from segquant_bench.eval.results import RunResult

SET_METRICS = ("fid_ref", "fid_gt")
IMAGE_METRICS = ("psnr", "ssim", "lpips", "perceptual", "clip_score")
UNITS = {"psnr": " dB"}


@dataclass(frozen=True)
class Comparison:
    """One paired comparison of two runs.

    `kind` is ``"difference"`` (ours − theirs) or ``"ratio"`` (ours / theirs, a geometric mean over pairs). `where`
    tells its model, dataset, seed or prompts from other comparisons'; it is empty where all share them.
    """

    ours: str
    theirs: str
    precision: str
    metric: str
    kind: str
    value: float
    interval: tuple[float, float]
    n: int
    pairs: str
    verdict: str
    where: str = ""

    @property
    def pair(self) -> tuple[str, str, str, str]:
        """What comparisons of the same two runs have in common."""
        return (self.where, self.precision, self.ours, self.theirs)

    @property
    def setting(self) -> str:
        """The precision, and whatever else is to be told."""
        return ", ".join(part for part in (self.precision, self.where) if part)

    def amount(self) -> str:
        """``+1.23 dB [0.90, 1.50]`` or ``×0.72 [0.68, 0.77]``."""
        low, high = self.interval
        if self.kind == "ratio":
            return f"×{self.value:.3f} [{low:.3f}, {high:.3f}]"
        digits = _digits(max(abs(low), abs(high)))
        unit = UNITS.get(self.metric, "")
        return f"{self.value:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"

    def sentence(self) -> str:
        """The comparison as one line."""
        return (
            f"{self.ours} vs {self.theirs} at {self.setting}: {self.metric} {self.amount()} {self.verdict} "
            f"(n={self.n}{self.pairs})"
        )


def _digits(magnitude: float) -> int:
    """Decimals that leave three significant digits."""
    return 3 if magnitude == 0 else min(max(2 - math.floor(math.log10(magnitude)), 0), 6)


def compare_runs(runs: Sequence[RunResult]) -> tuple[list[Comparison], list[str]]:
    """SegQuant and auto against every quantized run before them of the same group; every method's variants (an
    ablation's runs) against its first, and those of SegQuant and auto against the first run of each other method.

    Returns:
        the comparisons, in table order, and one sentence for every pair of series that cannot be compared.
    """
    found: list[Comparison] = []
    refused: list[str] = []
    ordered = [run for run in sort_runs(runs) if not run.is_float]
    names, where = labels(ordered), places(ordered)
    for i, ours in enumerate(ordered):
        opponents = _opponents(ours, ordered[:i])
        for theirs in opponents:
            made, left = Pair(ours, theirs, names[id(ours)], names[id(theirs)], where[id(ours)]).compare()
            found += made
            refused += left
        if not opponents and is_ours(ours.quantizer):
            refused += [_alone(ours, names[id(ours)])] if any(_shares_all_but_prompts(ours, r) for r in ordered) else []
    return found, refused


def _shares_all_but_prompts(ours: RunResult, run: RunResult) -> bool:
    keys = [(r.model, r.dataset, r.seed, *group_key(r)[1:]) for r in (ours, run)]
    return keys[0] == keys[1] and ours.prompts != run.prompts


def _alone(run: RunResult, name: str) -> str:
    return f"{name} at {run.precision} on {prompts_name(run)}, because the other runs have different prompts"


def _opponents(ours: RunResult, before: Sequence[RunResult]) -> list[RunResult]:
    """Which of the runs that stand before it in the table a run is compared with.

    Those on the same components, and the first run of the same quantizer on more or fewer components.
    """
    group = [run for run in before if group_key(run) == group_key(ours)]
    elsewhere: dict[object, RunResult] = {}
    for run in before:
        parts, own = set(quantized_parts(run)), set(quantized_parts(ours))
        alike = group_key(run)[:-1] == group_key(ours)[:-1] and run.quantizer == ours.quantizer
        if alike and (parts < own or parts > own):
            elsewhere.setdefault(group_key(run), run)
    variants = [run for run in group if method_name(run) == method_name(ours)]
    if not is_ours(ours.quantizer):
        return [*variants[:1], *elsewhere.values()]
    if not variants:
        return [*group, *elsewhere.values()]
    others = {method_name(run): run for run in reversed(group) if run not in variants}
    return [*variants[:1], *reversed(others.values())]


def against_unquantized(runs: Sequence[RunResult]) -> list[Comparison]:
    """Every metric's paired difference to the unquantized model, where the evaluation recorded one."""
    ordered = [run for run in sort_runs(runs) if not run.is_float]
    names, where = labels(ordered), places(ordered)
    found = []
    for run in ordered:
        for m in run.metrics:
            if m.delta is None or m.delta_interval is None:
                continue
            verdict = Difference(m.delta, m.delta_interval, m.n).verdict(m.direction)
            found.append(
                Comparison(
                    names[id(run)], "unquantized", run.precision, m.name, "difference",
                    m.delta, m.delta_interval, m.n, "", verdict, where[id(run)],
                )
            )  # fmt: skip
    return found


@dataclass(frozen=True)
class Pair:
    """Two runs of one group, their labels, and where they stand."""

    ours: RunResult
    theirs: RunResult
    our_label: str
    their_label: str
    where: str = ""

    def compare(self) -> tuple[list[Comparison], list[str]]:
        """Every metric both runs have: pictures first, then layers and denoiser outputs."""
        found: list[Comparison] = []
        refused: list[str] = []
        for name, compare in self._picture_metrics():
            try:
                found.append(compare(name))
            except EvalError as error:
                place = ", ".join(part for part in (self.ours.precision, self.where) if part)
                refused.append(f"{self.our_label} vs {self.their_label} at {place}: {error}")
        return found + self._errors(), list(dict.fromkeys(refused))

    def _picture_metrics(self) -> list[tuple[str, Callable[[str], Comparison]]]:
        """Names of both runs' metrics, network in brackets included, and how each is compared."""
        mutual = [m.name for m in self.ours.metrics if self.theirs.metric(m.name) is not None]
        kinds = [(base, self._set) for base in SET_METRICS] + [(base, self._image) for base in IMAGE_METRICS]
        return [(name, compare) for base, compare in kinds for name in mutual if name.split("[")[0] == base]

    def _set(self, name: str) -> Comparison:
        ours, theirs = read_replicates(self.ours, name), read_replicates(self.theirs, name)
        if ours[1] != theirs[1] or ours[0].shape != theirs[0].shape:
            raise EvalError(f"the bootstraps of {name} differ in seed, n or replicates; evaluate both alike")
        mine, other = self.ours.metric(name), self.theirs.metric(name)
        gap = paired_replicate_difference((mine.value, ours[0]), (other.value, theirs[0]), mine.n)
        return self._difference(name, gap, mine.direction)

    def _image(self, name: str) -> Comparison:
        ours, theirs = read_per_image(self.ours, name), read_per_image(self.theirs, name)
        gap = paired_mean_difference(ours, theirs, replicates=REPLICATES, seed=self.ours.seed)
        return self._difference(name, gap, self.ours.metric(name).direction)

    def _errors(self) -> list[Comparison]:
        found = []
        ours, theirs = self.ours.every_layer_error, self.theirs.every_layer_error
        layers = [layer for layer in ours if layer in theirs]
        found += self._ratio("layer error", [ours[k] for k in layers], [theirs[k] for k in layers], " layers")
        rows = (self.ours.per_row_output_errors, self.theirs.per_row_output_errors)
        if len(rows[0]) == len(rows[1]):
            found += self._ratio("output error", *rows, " denoiser calls")
        return found

    def _difference(self, name: str, gap: Difference, direction: str) -> Comparison:
        return Comparison(
            self.our_label, self.their_label, self.ours.precision, name, "difference",
            gap.value, gap.interval, gap.n, "", gap.verdict(direction), self.where,
        )  # fmt: skip

    def _ratio(self, name: str, ours: Sequence[float], theirs: Sequence[float], pairs: str) -> list[Comparison]:
        """Geometric mean of ours/theirs; pairs where either is zero (left unquantized) do not count."""
        both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a > 0.0 and b > 0.0]
        if len(both) < 2:
            return []
        logs = np.log(np.array(both))
        gap = paired_mean_difference(logs[:, 0], logs[:, 1], replicates=REPLICATES, seed=self.ours.seed)
        interval = (math.exp(gap.interval[0]), math.exp(gap.interval[1]))
        return [
            Comparison(
                self.our_label, self.their_label, self.ours.precision, name, "ratio",
                math.exp(gap.value), interval, gap.n, pairs, gap.verdict("lower"), self.where,
            )
        ]  # fmt: skip


def read_per_image(run: RunResult, name: str) -> np.ndarray:
    """The metric's value for every picture, float64 [n], from the run's evaluation folder."""
    path = _evaluation_file(run, "per_image.json")
    try:
        return np.array([float(v) for v in _read_json(path)["metrics"][name]])
    except KeyError as error:
        raise EvalError(f"{path} has no values of {name}; evaluate that run again") from error


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise EvalError(f"{path} is not readable JSON; evaluate that run again") from error


def read_replicates(run: RunResult, name: str) -> tuple[np.ndarray, dict[str, str]]:
    """Bootstrap replicates of FID or KID, and what they were drawn with (seed, n)."""
    path = _evaluation_file(run, "features.safetensors")
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            drawn = stored.get_tensor(f"replicates/{name}")
    except SafetensorError as error:
        raise EvalError(f"{path} has no bootstrap of {name} ({error}); evaluate that run again") from error
    return drawn, {key: metadata.get(key, "") for key in ("seed", "n")}


def _evaluation_file(run: RunResult, name: str) -> Path:
    folder = run.folder("evaluation")
    if folder is None or not (folder / name).is_file():
        raise EvalError(f"pictures are not compared, because {run.path} leads to no {name}; evaluate it again")
    return folder / name
