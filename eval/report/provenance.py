from __future__ import annotations

from collections.abc import Sequence

from segquant_bench.eval.report.runs.labels import labels, places
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.render_markdown import code, escape


def provenance(runs: Sequence[RunResult]) -> list[str]:
    """Sentences on software, machine and configuration."""
    found = []
    versions = {name: value for run in runs for name, value in run.versions.items()}
    if versions:
        found.append("versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()))
    devices = dict.fromkeys(", ".join(f"{k} {v}" for k, v in run.device.items()) for run in runs if run.device)
    found += [f"device: {device}" for device in devices]
    kernels = dict.fromkeys(name for run in runs for name in run.kernels)
    found += [f"quantized layers run by: {', '.join(kernels)}"] if kernels else []
    commits = dict.fromkeys(run.git for run in runs if run.git)
    if commits:
        found.append("commit: " + ", ".join(commits))
    found += _models(runs)
    names, where = labels(runs), places(runs)
    hashes = (
        " ".join(part for part in (where[id(run)], names[id(run)], _precision(run), run.config_hash) if part)
        for run in runs
    )
    found.append("configuration hashes: " + ", ".join(dict.fromkeys(hashes)))
    return found


def _models(runs: Sequence[RunResult]) -> list[str]:
    """Where models whose names tell their files apart come from."""
    found: dict[str, None] = {}
    for run in runs:
        model = run.config.get("model") or {}
        if model.get("name") not in (None, run.model):
            found[f"{run.model} is {model.get('path') or model.get('repo')}"] = None
    return ["models of one name: " + ", ".join(found)] if found else []


def _precision(run: RunResult) -> str:
    return "" if run.is_float else run.precision


def provenance_markdown(runs: Sequence[RunResult]) -> str:
    return "".join(f"- {escape(sentence)}\n" for sentence in provenance(runs))


def sources_markdown(runs: Sequence[RunResult]) -> str:
    lines = [f"- {code(name)}: {escape(backend)}\n" for name, backend in backends(runs).items()]
    return "".join(lines) + provenance_markdown(runs)


def backends(runs: Sequence[RunResult]) -> dict[str, str]:
    """Software and weights behind each metric, by name."""
    return {metric.name: metric.backend for run in runs for metric in run.metrics}
