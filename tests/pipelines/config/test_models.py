"""conf/model: every option composes, and what several share stands once, in a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.runtime.paths import CONF
from tests.pipelines.conftest import compose_config

MODELS = sorted((CONF / "model").glob("*.yaml"))


def _lines(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _lines(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _own(path: Path) -> tuple[dict[str, Any], list[Path]]:
    values = yaml.safe_load(path.read_text())
    bases = [entry for entry in values.pop("defaults", []) if entry != "_self_"]
    return _lines(values), [CONF / "model" / f"{base.removesuffix('@_here_')}.yaml" for base in bases]


def _inherited(path: Path) -> dict[str, Any]:
    own, bases = _own(path)
    found: dict[str, Any] = {}
    for base in bases:
        found |= _inherited(base)
    return found | own


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_has_all_of_its_bases_and_what_it_says_itself(path: Path) -> None:
    overrides = [f"model={path.stem}", *(["model.path=somewhere"] if path.stem == "tiny_random" else [])]
    model = validate(compose_config(overrides)).model
    assert model.name == path.stem
    for key, expected in _inherited(path).items():
        first, *rest = key.split(".")
        value = getattr(model, first)
        for part in rest:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        assert value == expected or "$" in str(expected) or expected == "???", key


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_no_model_repeats_what_its_base_says(path: Path) -> None:
    own, bases = _own(path)
    assert not [key for base in bases for key, value in _inherited(base).items() if key in own and own[key] == value]
