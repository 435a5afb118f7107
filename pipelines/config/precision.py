"""Precisions: what their fields are called, and those of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from segquant_bench.pipelines.config.formats import SIDES, FormatConfig, PrecisionConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime import own_code
from segquant_bench.pipelines.runtime.own_code import TARGET
from segquant_bench.pipelines.runtime.paths import CONF

if TYPE_CHECKING:
    from segquant import QuantScheme, QuantSpec

KEY = f"precision.{TARGET}"
CUSTOM = "custom"
"""A file that stands for no format: it is called by its fields."""

_NARROWED = dict.fromkeys(("w4a8", "w4a4", "w4a16"), {"scale_dtype": "bfloat16"})
"""What these names did not mean in earlier results, whose scales were float32."""


REFUSED = "refused"


@cache
def shipped_precisions() -> dict[str, dict[str, Any]]:
    """Fields of conf/precision by name, without `CUSTOM`."""
    return {path.stem: _read(path) for path in sorted((CONF / "precision").glob("*.yaml")) if path.stem != CUSTOM}


def _read(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    weight, inputs = (FormatConfig(**values[side]) if side in values else None for side in SIDES)
    return PrecisionConfig(path.stem, weight, inputs).fields()


def precision_label(name: str, *, _parent_: DictConfig) -> str:
    """`${precision:NAME}`: the name, where the section still has its formats, else one made of those it has.

    `REFUSED` for formats that there are not: validating and building say why, so that a sweep's other jobs go on.

    Raises:
        PipelineError: no such name.
    """
    if name != CUSTOM and name not in shipped_precisions():
        raise PipelineError(f"precision.name=${{precision:{name}}} is for precisions that ship; write name: {name}")
    if _parent_[TARGET] is not None:
        return name
    weight, inputs = (None if _parent_[side] is None else OmegaConf.to_object(_parent_[side]) for side in SIDES)
    assert isinstance(weight, FormatConfig | None) and isinstance(inputs, FormatConfig | None)  # by the schema
    try:
        config = PrecisionConfig(name, weight, inputs)
        if name != CUSTOM and config.fields() == shipped_precisions()[name]:
            return name
        from segquant.numerics.precisions import precision_name  # torch: not for `segquant --help`

        return precision_name(scheme_from(config))
    except PipelineError:
        return REFUSED


def with_name(overrides: Sequence[str]) -> list[str]:
    """Arguments in which a precision of the user's own whose formats they change is called by its formats.

    What its own name stands for is not known once the configuration is composed.

    >>> with_name(["precision=mine", "precision.weight.bits=3"])[-1]
    'precision.name=${precision:custom}'
    """
    pairs = [(key.lstrip("+"), value) for key, _, value in (each.partition("=") for each in overrides)]
    changed = any(key.startswith(tuple(f"precision.{side}" for side in SIDES)) for key, _ in pairs)
    chosen = [(key, name) for key, values in pairs if key in ("precision", "experiment") for name in values.split(",")]
    own = any(not (CONF / key / f"{name}.yaml").is_file() for key, name in chosen)
    if not changed or not own or any(key == "precision.name" for key, _ in pairs):
        return list(overrides)
    return [*overrides, f"precision.name=${{precision:{CUSTOM}}}"]


def arguments_of(name: str) -> list[str]:
    """What to write in place of a format called by its fields ("w6g32_a8token"); empty for any other name.

    >>> arguments_of("w6g32_a8token")
    ['precision=custom', 'precision.weight.dtype=int6', 'precision.weight.group_size=32']
    """
    if not name.startswith("w") or "_a" not in name:
        return []
    from segquant.numerics.precisions import precision_name, scheme_of  # torch: only for names like these

    try:
        scheme = scheme_of(name)
    except ValueError:
        return []
    if (shipped := precision_name(scheme)) in shipped_precisions():
        return [f"precision={shipped}"]
    specs = (scheme.weight, scheme.input)
    return [
        "precision=custom",
        *(text for side, spec in zip(SIDES, specs, strict=True) for text in _fields(side, spec)),
    ]


def _fields(side: str, spec: QuantSpec | None) -> list[str]:
    """Those that differ from the ones of `CUSTOM`, int8, and from what follows from the others."""
    if spec is None:
        return [f"precision.{side}=null"]
    names = ("dtype", "granularity", "group_size", "dynamic", "scale_dtype")
    given = {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}
    whole = FormatConfig(**given).settled(side)
    for name in ("dynamic", "scale_dtype", "granularity"):
        less = {key: value for key, value in given.items() if key != name}
        given = less if FormatConfig(**less).settled(side) == whole else given
    told = {key: str(value).lower() for key, value in given.items() if (key, value) != ("dtype", "int8")}
    return [f"precision.{side}.{key}={value}" for key, value in told.items()]


def precision_record(config: PrecisionConfig) -> dict[str, Any]:
    """What numbers depend on: of segquant's precisions the name alone, of others the formats or the function too."""
    if config._target_ is not None:
        own = {"arguments": config.arguments} if config.arguments else {}
        return {"name": config.name, TARGET: config._target_, **own}
    if not config.has_fields or config.name in shipped_precisions():
        return {"name": config.name} | _NARROWED.get(config.name, {})
    return {"name": config.name, **scheme_from(config).to_dict()}


def register_precision(config: PrecisionConfig) -> QuantScheme | None:
    """Make one's own precision known for this process; None for one of segquant's.

    Raises:
        PipelineError: unknown fields, a failing function, no scheme, or a name taken.
    """
    if not config.has_fields and config._target_ is None:
        return None
    import segquant  # torch: not for `segquant --help`
    from segquant.numerics.precisions import NAMED, precision_name, scheme_of

    scheme = scheme_from(config)
    if precision_name(scheme) == config.name:
        return None if config.name in NAMED else scheme
    try:
        known = scheme_of(config.name)
    except ValueError:
        known = segquant.register(scheme, name=config.name)
    if known != scheme:
        raise PipelineError(
            f"precision {config.name}: there is a precision of this name already, {precision_name(known)}, and this "
            f"one is {precision_name(scheme)}; set precision.name=NAME"
        )
    return scheme


def scheme_from(config: PrecisionConfig) -> QuantScheme:
    """The formats that fields or a function tell.

    Raises:
        PipelineError: in one sentence, what does not go together.
    """
    from segquant import QuantScheme, QuantSpec

    if config._target_ is None:
        specs = {}
        for side, fields in config.fields().items():
            try:
                specs[side] = None if fields is None else QuantSpec(**fields)
            except ValueError as error:
                raise PipelineError(f"precision.{side}: {one_line(error)}") from error
        try:
            return QuantScheme(**specs)
        except ValueError as error:
            raise PipelineError(f"precision: {one_line(error)}") from error
    function = own_code.find_function(config._target_, KEY)
    made: Any = own_code.call(function, config.arguments, "precision.arguments", config._target_)
    if not isinstance(made, QuantScheme):
        raise PipelineError(
            f"{KEY}={config._target_} returned {type(made).__name__}; return a segquant.QuantScheme(weight, input)"
        )
    return made
