"""The named method: everything that decides how a model is quantized, except data and segments.

Frozen, validated on construction, and it survives a JSON round trip. Number formats are in `formats`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segquant.errors import nearest
from segquant.method.reconstruction import Reconstruction
from segquant.numerics.formats import QuantScheme, check_choice, refuse_unknown, scheme_of

OPTIMIZERS = ("none", "smooth", "svd", "balance", "awq")
CALIBRATORS = ("amax", "gptq", "adaround")
RANGES = ("amax", "percentile", "mse")
SVDS = ("exact", "randomized")
CUTS = ("graph", "random", "wrong")
DEFAULT_RANK = 32
SEARCH, SEARCH_LAYER = "search", "search_layer"
_FIXED = (
    "name", "scheme", "skip", "overrides", "on_uncalled", "convolutions", "budget", "cuts", "seed", "reconstruction",
)  # fmt: skip
"""Fields that hold for the whole model and no override may change (precision stands for the scheme)."""


@dataclass(frozen=True)
class Budget:
    """What `auto` may spend, relative to plain rounding at the same precision.

    Args:
        bytes: largest size of the quantized layers, as a multiple of what rounding stores (codes and scales).
        operations: most multiply-accumulates per input row, as a multiple of the layers' own (low-rank
            branches, rotations, a second integer product for DualScale).
        average_bits: allow layers to take more or fewer weight bits (4 or 8) than the precision says, as long as
            the average per weight stays at or below this; None leaves every layer at the precision's.
    """

    bytes: float = 1.1
    operations: float = 1.5
    average_bits: float | None = None

    def __post_init__(self) -> None:
        if not self.bytes >= 1 or not self.operations >= 1:
            raise ValueError(
                f"budget bytes={self.bytes}, operations={self.operations}: both are multiples of plain "
                "rounding's cost and at least 1"
            )
        if self.average_bits is not None and not 4 <= self.average_bits <= 8:
            raise ValueError(f"budget average_bits must lie in [4, 8], not {self.average_bits}")


@dataclass(frozen=True)
class Method:
    """Everything that decides how a model is quantized; data and segments come from the outside.

    Args:
        name: for people and tables.
        scheme: number formats.
        seglinear: cut linears where the graph says so, each piece with its own parameters.
        dualscale: one scale per sign for inputs that come out of an activation function.
        optimizer: "none", "smooth" (SmoothQuant), "svd" (smoothing, then a 16-bit low-rank branch), "balance"
            (PTQ4DiT's salience balancing) or "awq" (activation-aware scaling by the weight's error alone).
        alpha: migration strength in [0, 1] of "smooth", "svd" and "awq"; "search" (0.0, 0.1 … 1.0 and no smoothing)
            for every segment by itself, "search_layer" with one α for all segments of a layer.
        rank: rank of the low-rank branch (optimizer "svd"); None is SVDQuant's 32, but never more than a 32nd of
            the layer's smaller side, so that the branch stays a small share of a small layer's bytes too.
        svd: "exact", or "randomized" (Halko et al. 2011) for large layers.
        iterations: rounds of refitting the low-rank branch to what the quantizer left (optimizer "svd").
        rotate: rotate (smoothed) inputs and weights by a randomized block-diagonal Hadamard matrix (QuaRot).
        calibrator: "amax" (round to nearest), "gptq" or "adaround" (block reconstruction, reads the data twice).
        ranges: what scales of weights and static inputs come from: "amax"; "percentile" (of inputs; weights keep
            their maximum); "mse" (the shrunk range with the least squared rounding error).
        percentile: of "percentile", in (50, 100].
        act_order: GPTQ goes through the columns by falling curvature.
        damp: GPTQ's damping, as a share of the mean of the Hessian's diagonal.
        bias_correction: add the mean output error, as calibration rows show it, to the bias.
        cuts: "graph", or a control of the paper's Table 6: "random" places or the "wrong" number of pieces.
        skip: globs of module names that stay in floating point.
        overrides: (glob, fields) pairs; a layer takes the fields of every glob that matches it, later ones win.
            "precision" names another scheme, "skip" True leaves the layer in floating point.
        on_uncalled: "error" or "skip" (leave in floating point) for layers that calibration never called.
        convolutions: quantize ungrouped nn.Conv2d too (a UNet whole); False leaves everything but linears in floating
            point, as the paper's authors do.
        seed: of the reservoir of rows and of everything else that draws.
        reconstruction: settings of "adaround".
        budget: let every layer choose its own fields within this budget (`auto`); None: as the fields say.
    """

    name: str
    scheme: QuantScheme
    seglinear: bool = False
    dualscale: bool = False
    optimizer: str = "none"
    alpha: float | str = SEARCH
    rank: int | None = None
    svd: str = "exact"
    iterations: int = 0
    rotate: bool = False
    calibrator: str = "amax"
    ranges: str = "amax"
    percentile: float = 99.9
    act_order: bool = True
    damp: float = 0.01
    bias_correction: bool = False
    cuts: str = "graph"
    skip: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    on_uncalled: str = "error"
    convolutions: bool = False
    seed: int = 0
    reconstruction: Reconstruction = Reconstruction()
    budget: Budget | None = None

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("calibrator", self.calibrator, CALIBRATORS)
        check_choice("ranges", self.ranges, RANGES)
        check_choice("svd", self.svd, SVDS)
        check_choice("cuts", self.cuts, CUTS)
        check_choice("on_uncalled", self.on_uncalled, ("error", "skip"))
        if isinstance(self.alpha, str):
            check_choice("alpha", self.alpha, (SEARCH, SEARCH_LAYER))
        elif not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1] or be 'search' or 'search_layer', not {self.alpha}")
        if (self.rank is not None and self.rank < 1) or self.iterations < 0:
            raise ValueError(f"rank={self.rank}, iterations={self.iterations}: rank is at least 1, iterations 0")
        if self.calibrator == "adaround" and self.bias_correction:
            raise ValueError("bias_correction has nothing to add to calibrator 'adaround'; switch one of them off")
        if not self.damp > 0:
            raise ValueError(f"damp must be positive, not {self.damp}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100], not {self.percentile}")
        if isinstance(self.skip, str):
            raise ValueError(f"skip is a list of globs, not the string {self.skip!r}")
        object.__setattr__(self, "skip", tuple(str(pattern) for pattern in self.skip))
        object.__setattr__(self, "overrides", _pairs(self.overrides))
        for pattern, values in self.overrides:
            self._changed(values, pattern)

    def _changed(self, values: Mapping[str, Any], pattern: str) -> Method | None:
        """This method with an override's fields; None where it says skip."""
        values = dict(values)
        known = {field.name for field in dataclasses.fields(self)} - set(_FIXED) | {"precision", "skip"}
        for key in values:
            if key not in known:
                raise ValueError(f"override {pattern!r}: {key!r} cannot be changed per layer; {nearest(key, known)}")
        if values.pop("skip", False):
            return None
        try:
            if "precision" in values:
                values["scheme"] = scheme_of(values.pop("precision"))
            return dataclasses.replace(self, overrides=(), **values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"override {pattern!r}: {error}") from error

    def for_layer(self, name: str) -> Method | None:
        """The method of one layer, overrides applied; None if it stays in floating point."""
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.skip):
            return None
        matching = [pair for pair in self.overrides if fnmatch.fnmatchcase(name, pair[0])]
        if not matching:
            return self if self.scheme.weight is not None else None
        values: dict[str, Any] = {}
        for _, changes in matching:
            values.update(changes)
        changed = self._changed(values, matching[-1][0])
        return changed if changed is not None and changed.scheme.weight is not None else None

    def rank_of(self, in_features: int, out_features: int) -> int:
        """Rank of the low-rank branch of a layer of that size."""
        if self.rank is not None:
            return self.rank
        return max(1, min(DEFAULT_RANK, min(in_features, out_features) // DEFAULT_RANK))

    @property
    def searches(self) -> bool:
        """Whether α is searched."""
        return isinstance(self.alpha, str)

    @property
    def smooths(self) -> bool:
        """Whether inputs are divided by a smoothing vector."""
        return self.optimizer != "none"

    @property
    def needs_gram(self) -> bool:
        """Whether observe must accumulate XᵀX."""
        if self.scheme.weight is None:
            return False
        refits = self.optimizer == "svd" and self.iterations > 0
        return self.calibrator == "gptq" or refits or self.budget is not None

    @property
    def needs_salience(self) -> bool:
        """Whether observe must weigh timesteps by Spearman's ρ (PTQ4DiT)."""
        return self.scheme.weight is not None and self.optimizer == "balance"

    @property
    def needs_data(self) -> bool:
        """Whether anything of the method depends on calibration inputs."""
        if self.scheme.weight is None:
            return False
        looks = self.smooths or self.calibrator != "amax" or self.bias_correction or self.ranges == "mse"
        return self.scheme.static_input or looks or self.budget is not None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; `from_dict` is its inverse."""
        values = dataclasses.asdict(self)
        values["skip"] = list(self.skip)
        values["overrides"] = [[pattern, dict(changes)] for pattern, changes in self.overrides]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Method:
        """Inverse of `to_dict`; unknown keys raise ValueError with the nearest name."""
        refuse_unknown(cls, values)
        parts: dict[str, Any] = {"scheme": QuantScheme.from_dict(values["scheme"])}
        if values.get("budget") is not None:
            refuse_unknown(Budget, values["budget"])
            parts["budget"] = Budget(**values["budget"])
        if "reconstruction" in values:
            refuse_unknown(Reconstruction, values["reconstruction"])
            parts["reconstruction"] = Reconstruction(**values["reconstruction"])
        return cls(**{**values, **parts})


def _pairs(
    overrides: Mapping[str, Mapping[str, Any]] | Iterable[Sequence[Any]],
) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Overrides as pairs, from a mapping or from pairs."""
    pairs = overrides.items() if isinstance(overrides, Mapping) else overrides
    found = []
    for pair in pairs:
        pattern, changes = pair
        if not isinstance(changes, Mapping):
            raise ValueError(f"override {pattern!r} is {changes!r}; give the fields to change, as in {{rank: 16}}")
        found.append((str(pattern), {str(key): value for key, value in changes.items()}))
    return tuple(found)
