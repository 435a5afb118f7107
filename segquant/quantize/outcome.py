"""What quantizing did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segquant.checks import check_fields, require
from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.method.plan_file import LayerPlan
from segquant.method.spec import Method


@dataclass(frozen=True)
class Outcome:
    """What was done to a model.

    Args:
        method: as carried out.
        segments: by layer.
        passes: readings of all the data.
        choices: of `auto`.
        folded: layers whose smoothing the norm or linear before them took in.
    """

    method: Method
    segments: Mapping[str, Segments] = field(default_factory=dict)
    passes: int = 0
    choices: tuple[LayerPlan, ...] | None = None
    folded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.passes < 0:
            raise QuantizationError(f"Outcome: passes is {self.passes}; give at least 0")

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "method": self.method.to_dict(),
            "segments": {name: _told(entry) for name, entry in self.segments.items()},
            "passes": self.passes,
        }
        if self.folded:
            found["folded"] = list(self.folded)
        if self.choices is not None:
            found["plan"] = [dataclasses.asdict(entry) for entry in self.choices]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outcome:
        """Inverse of `to_dict`; ValueError for a method that cannot be read."""
        require(values, Mapping[str, Any], "Outcome.from_dict", "values", "what to_dict returned")
        for key in ("method", "segments"):
            require(values.get(key), Mapping[str, Any], "Outcome.from_dict", key, "what to_dict returned")
        plan = values.get("plan")
        return cls(
            Method.from_dict(values["method"]),
            {name: Segments(**entry) for name, entry in values["segments"].items()},
            values.get("passes", 0),
            None if plan is None else tuple(LayerPlan(**entry) for entry in plan),
            tuple(values.get("folded", ())),
        )


def _told(segments: Segments) -> dict[str, Any]:
    """Fields, `skip` only where it is set: files of models without skips stay as they were."""
    return {key: value for key, value in dataclasses.asdict(segments).items() if key != "skip" or value}
