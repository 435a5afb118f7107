"""The named method: how a model is quantized, without data and segments."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segquant import registry
from segquant.bounds import check_most
from segquant.calibrators.gptq import SHRINKAGE
from segquant.calibrators.nearest import Nearest
from segquant.calibrators.protocol import Calibrator
from segquant.checks import check_fields, check_set_fields, checked, described, require
from segquant.errors import QuantizationError, nearest
from segquant.method.flat import MEMBERS, OWN, TARGETS, attribute, changed, flat_names, settings, value_of
from segquant.method.parts import SEARCH, Budget, Cuts, Targets, check_headroom, has_float_codes
from segquant.modules.state import check_seed
from segquant.numerics.formats import QuantScheme, refuse_unknown
from segquant.numerics.precisions import Precision, scheme_of
from segquant.optimizers.protocol import Optimizer, Rotation
from segquant.optimizers.scaling import NoOptimizer
from segquant.ranges.amax import Amax
from segquant.ranges.percentile import Percentile
from segquant.ranges.protocol import Range

VERSION = 2
"""Of the saved form; version 1, which had no number, was flat."""
EARLIER_PERCENTILE = 99.9
"""What `ranges=percentile` was in saved methods that do not tell it."""
_FIXED = {*OWN, *TARGETS, "cuts"} - {"bias_correction", "headroom", "gram_shrinkage"}
"""Flat names that hold for the whole model and no override may change (precision stands for the scheme)."""


@dataclass(frozen=True)
class Method:
    """How a model is quantized; frozen, validated, and it survives a JSON round trip.

    Overrides, presets and `Method.of` use flat names (see `method.flat`).

    Args:
        name: for people and tables.
        scheme: number formats.
        rotation: turns the optimized input, and the weight with it.
        ranges: where scales come from.
        bias_correction: add the mean output error to the bias.
        headroom: share by which static scales exceed the range that calibration saw; "search": the one of least error
            on rows held out, where few rows set the range.
        gram_shrinkage: weight of the Gram matrix's diagonal against the rows seen, in units of in_features rows.
        seed: of everything that draws.
        budget: lets `auto` choose every layer's settings.
        spare: flat settings for members of overrides.
    """

    name: str
    scheme: QuantScheme
    cuts: Cuts = Cuts()
    optimizer: Optimizer = NoOptimizer()
    rotation: Rotation | None = None
    calibrator: Calibrator = Nearest()
    ranges: Range = Amax()
    bias_correction: bool = False
    headroom: float | str = 0.0
    gram_shrinkage: float = SHRINKAGE
    targets: Targets = Targets()
    seed: int = 0
    budget: Budget | None = None
    spare: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, slot in MEMBERS.items():
            member = getattr(self, attribute(name))
            if getattr(member, "slot", slot) != slot or isinstance(member, (str, type)):
                told = f"{attribute(name)}={described(member)} is no {slot}"
                raise ValueError(f"{told}; give a member, or Method.of its name")
            check_set_fields(member)
        check_fields(self)
        check_seed(self.seed)
        check_headroom(self.headroom)
        if not 0 <= self.gram_shrinkage < math.inf:
            raise ValueError(f"gram_shrinkage must be at least 0, not {self.gram_shrinkage}")
        check_most(self)
        if self.cuts.dualscale and self.cuts.negative == "zero_point" and has_float_codes(self.scheme):
            assert self.scheme.input is not None
            raise ValueError(
                f"negative='zero_point', as deploy='onnx' and 'torchao' have it, is for inputs of integers, and "
                f"{self.scheme.input.dtype} has no zero point; choose negative='dual', dualscale=False, or a precision "
                "with integers"
            )
        if "second_pass" in self.calibrator.needs and self.bias_correction:
            raise ValueError(
                f"bias_correction has nothing to add to calibrator {self.calibrator.name!r}; switch one of them off"
            )
        if "second_pass" in self.calibrator.needs and self.cuts.negative == "shift":
            raise ValueError(
                f"negative='shift' goes into the bias with the rounded weight, which {self.calibrator.name!r} still "
                "changes; choose negative='zero_point'"
            )
        if "second_pass" in self.calibrator.needs and self.folds:
            raise ValueError(
                f"smoothing={self.cuts.smoothing!r} changes what {self.calibrator.name!r} compares with; choose "
                "smoothing='layer'"
            )
        for pattern, values in self.targets.overrides:
            self._overridden(values, pattern)

    @classmethod
    @checked(precision="")
    def of(cls, name: str, precision: Precision, **settings: Any) -> Method:
        """A method from flat names, `Method.of("mine", "w4a8", optimizer="svd", rank=16, calibrator="gptq")`.

        Members are given by name or as they are.

        Raises:
            ValueError: an unknown name, or a value that its part refuses.
        """
        return changed(cls(name, scheme_of(precision)), settings)

    def changed(self, **settings: Any) -> Method:
        """This method with other values of flat names; see `Method.of`."""
        return changed(self, settings)

    def value(self, name: str) -> Any:
        return value_of(self, name)

    def _overridden(self, values: Mapping[str, Any], pattern: str) -> Method | None:
        values = dict(values)
        fixed = _FIXED | {key for kind in registry.table("calibrator").values() for key in kind.whole_model}
        known = flat_names() - fixed | {"precision", "skip"}
        for key in values:
            if key not in known:
                raise ValueError(f"override {pattern!r}: {key!r} cannot be changed per layer; {nearest(key, known)}")
        if values.pop("skip", False):
            return None
        try:
            return changed(self, {**values, "overrides": ()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"override {pattern!r}: {error}") from error

    def for_layer(self, name: str) -> Method | None:
        """The layer's method, overrides applied; None if it is skipped."""
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.targets.skip):
            return None
        matching = [pair for pair in self.targets.overrides if fnmatch.fnmatchcase(name, pair[0])]
        if not matching:
            return self if self.scheme.weight is not None else None
        values: dict[str, Any] = {}
        for _, changes in matching:
            values.update(changes)
        found = self._overridden(values, matching[-1][0])
        return found if found is not None and found.scheme.weight is not None else None

    @property
    def folds(self) -> bool:
        """Whether smoothing goes into what makes the inputs, where it can."""
        return self.cuts.smoothing != "layer" and self.optimizer.without_smoothing() is not None

    @property
    def needs(self) -> frozenset[str]:
        """What observe must collect: "stats", "gram", "salience"; "second_pass" of the data."""
        if self.scheme.weight is None:
            return frozenset()
        found = self.optimizer.needs | self.calibrator.needs | self.ranges.needs
        folds = self.scheme.input is not None and self.cuts.seglinear and self.cuts.columns == "fold"
        if self.scheme.static_input or self.bias_correction or folds:
            found |= {"stats"}
        if self.budget is not None:
            found |= {"stats", "gram"}
        return frozenset(found)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; `from_dict` is its inverse."""
        targets = dataclasses.asdict(self.targets)
        targets["skip"] = list(self.targets.skip)
        targets["overrides"] = [
            [pattern, {key: _plain(value) for key, value in changes.items()}]
            for pattern, changes in self.targets.overrides
        ]
        return {
            "version": VERSION,
            "name": self.name,
            "scheme": self.scheme.to_dict(),
            "cuts": dataclasses.asdict(self.cuts),
            "optimizer": registry.to_dict(self.optimizer),
            "rotation": None if self.rotation is None else registry.to_dict(self.rotation),
            "calibrator": registry.to_dict(self.calibrator),
            "ranges": registry.to_dict(self.ranges),
            "bias_correction": self.bias_correction,
            "headroom": self.headroom,
            "gram_shrinkage": self.gram_shrinkage,
            "targets": targets,
            "seed": self.seed,
            "budget": None if self.budget is None else dataclasses.asdict(self.budget),
            "spare": {key: _plain(value) for key, value in self.spare.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Method:
        """Inverse of `to_dict`; reads version 1 (flat settings) and methods that tell no headroom too.

        Raises:
            ValueError: unknown keys, another version, or an unregistered member.
        """
        require(values, Mapping[str, Any], "Method.from_dict", "values", "what to_dict returned")
        values = dict(values)
        version = values.pop("version", 1)
        earlier = "headroom" not in values
        for key in ("name", "scheme"):
            if key not in values:
                told = f"{described(values)} is no saved method: it has no {key!r}"
                raise QuantizationError(f"{told}; give what to_dict returned")
        if version == 1:
            scheme = QuantScheme.from_dict(values.pop("scheme"))
            given = {"percentile": EARLIER_PERCENTILE, **values} if earlier else values
            return _as_earlier(cls.of(given.pop("name"), scheme, **given), earlier)
        if version != VERSION:
            raise ValueError(f"a method of version {version}; this version reads 1 and {VERSION}")
        refuse_unknown(cls, values)
        asker = f"method {values.get('name')!r}"
        parts: dict[str, Any] = {"scheme": QuantScheme.from_dict(values["scheme"])}
        for name, slot in MEMBERS.items():
            key = attribute(name)
            if values.get(key) is not None:
                parts[key] = registry.from_dict(slot, values[key], asker=asker)
        for key, kind in (("cuts", Cuts), ("targets", Targets), ("budget", Budget)):
            if values.get(key) is not None:
                parts[key] = registry.build(kind, values[key])
        found = cls(**{**values, **parts, "spare": {}})
        spare = dict(values.get("spare") or {})
        for key in spare.keys() - settings().keys():
            raise ValueError(f"spare has {described(key)}, which is no setting of a member; {nearest(key, settings())}")
        if earlier and values.get("ranges", {}).get("name") != Percentile.name:
            spare = {"percentile": EARLIER_PERCENTILE, **spare}
        return _as_earlier(changed(found, spare) if spare else found, earlier)


def _as_earlier(method: Method, earlier: bool) -> Method:
    """With the headroom of methods that tell none: static scales had it where ranges were in doubt."""
    doubtful = {"seglinear", "rotate", "alpha"} & {key for _, values in method.targets.overrides for key in values}
    searched = isinstance(getattr(method.optimizer, "alpha", None), str) and method.optimizer.name != "awq"
    had = method.cuts.seglinear or method.rotation is not None or searched or bool(doubtful)
    return changed(method, {"headroom": SEARCH}) if earlier and had else method


def _plain(value: Any) -> Any:
    if isinstance(value, QuantScheme):
        return value.to_dict()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
