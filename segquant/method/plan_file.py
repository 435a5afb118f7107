"""The plan that `auto` chose, as a file to edit and run again."""

from __future__ import annotations

import dataclasses
import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segquant.checks import check_fields
from segquant.errors import QuantizationError
from segquant.files import write_json
from segquant.method.spec import Method

SCHEMA = 2
READS = (1, 2)
"""Schemas that `read_plan` reads; 1 had a method of version 1."""
PLAN = "plan.json"


@dataclass(frozen=True)
class LayerPlan:
    """What one layer does, and what that costs.

    Args:
        choice: flat settings that differ from the base's.
        error: expected relative output error; None after an edit.
        operations: per input row, in multiples of the layer's own.
        plain: error of plain rounding.
        gain: see `output_gains`; None where every layer had its best within the budget, which asks for none.
    """

    layer: str
    choice: Mapping[str, Any] = field(default_factory=dict)
    error: float | None = None
    bytes: int | None = None
    operations: float | None = None
    plain: float | None = None
    gain: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("error", "bytes", "operations", "plain", "gain"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise QuantizationError(f"LayerPlan: {name} is {value}; give at least 0, or None")


def plan_method(base: Method, layers: Sequence[LayerPlan], name: str = "plan") -> Method:
    """`base` with one override per layer of the plan."""
    pairs = [(glob.escape(entry.layer), dict(entry.choice)) for entry in layers if entry.choice]
    return base.changed(name=name, budget=None, overrides=(*base.targets.overrides, *pairs))


def write_plan(path: Path, base: Method, layers: Sequence[LayerPlan]) -> None:
    content = {
        "schema": SCHEMA,
        "method": {**base.to_dict(), "budget": None},
        "budget": dataclasses.asdict(base.budget) if base.budget else None,
        "layers": [dataclasses.asdict(entry) for entry in layers],
    }
    write_json(path, content)


def read_plan(path: Path) -> Method:
    """The method of a plan file; ValueError if there is none, or for an unknown field."""
    if not path.is_file():
        raise ValueError(f"there is no plan {path}; give the plan.json of a run of quantizer=auto")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") not in READS:
            raise ValueError(f"schema {content.get('schema')} instead of {SCHEMA}")
        base = Method.from_dict(content["method"])
        layers = [LayerPlan(**entry) for entry in content["layers"]]
        return plan_method(base, layers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no plan of quantizer=auto ({error}); write it again with it") from error
