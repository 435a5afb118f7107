"""Names of code in a model's files, refused before any import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segquant_bench.hidden import visible
from segquant_bench.pipelines.config.sections import ModelConfig
from segquant_bench.pipelines.errors import PipelineError

LIBRARIES = ("diffusers", "transformers")
"""What components may come from; a module of diffusers.pipelines may too (safety checkers)."""
REMOTE = "auto_map"
"""The key of transformers' JSON files that names Python files beside them."""


def check_names(config: ModelConfig, directory: Path, index: Mapping[str, Any]) -> None:
    """Refuse files that name code, but for `model.pipeline` and `model.parts`.

    Raises:
        PipelineError: a pipeline class that is no name, another library's component, or `auto_map`.
    """
    file = directory / "model_index.json"
    if config.pipeline is None and not isinstance(index["_class_name"], str):
        raise PipelineError(
            f"{file} names {index['_class_name']} as its pipeline class, code of its own, which is never run; set "
            "model.pipeline to a class of diffusers, or to one of a package of yours"
        )
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None:
            part = config.parts.get(name)
            top = part.kind.partition(".")[0] if part is not None and "." in part.kind else None
            if not _is_known(entry[0]) and entry[0] != top:
                raise PipelineError(
                    f"{file} takes its {name} from {entry[0]!r}, which is neither diffusers nor transformers, and code "
                    f"that a model names is never imported; set model.parts.{name}={{kind: your_package.{entry[1]}, "
                    f"path: {directory / name}}}"
                )
            _check_files(directory / name, str(entry[1]))


def _is_known(library: Any) -> bool:
    from diffusers import pipelines  # seconds; put off until a model is loaded

    return isinstance(library, str) and (
        library in LIBRARIES or (library.isidentifier() and hasattr(pipelines, library))
    )


def _check_files(folder: Path, kind: str) -> None:
    # transformers would offer to run it.
    if not kind.startswith("Auto"):
        return
    for file in visible(folder.glob("*.json"), folder):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            continue  # told by whoever reads it
        if isinstance(content, dict) and REMOTE in content:
            raise PipelineError(
                f"{file} names code of its own ({REMOTE}), which is never run; take the key out, or use a model whose "
                "classes transformers has"
            )
