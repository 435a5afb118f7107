"""Pipelines and calls that do not go together: what diffusers would say of them while pictures are made."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from segquant_bench.pipelines.errors import PipelineError, one_line

PICTURES = ("image", "control_image")
"""Arguments that `model.control` gives."""
ALIKE = "transformer", "unet", "controlnet"
"""Components that only their own class stands for; autoencoders and schedulers may be others."""
LEGACY = "Transformer2DModel"
"""What earlier releases called several classes, which diffusers translates."""
_SHOWN = 300
_WHOLE = 1024
"""A size that every pipeline takes."""


def check_takes(kind: Any, asked: str, call: Iterable[str], control: bool) -> None:
    """Refuse a pipeline's class that makes pictures of something else than prompts.

    Args:
        asked: what named it, for messages.
        call: names of arguments that it is given beside prompts.
        control: whether it is given control pictures.

    Raises:
        PipelineError: with what it needs.
    """
    known = inspect.signature(kind.__call__).parameters
    shipped = kind.__module__.startswith("diffusers.")
    if not shipped and any(item.kind is item.VAR_KEYWORD for item in known.values()):
        return  # one's own class that hands on what it is given
    given = {"self", "prompt", *call, *(PICTURES if control else ())}
    empty = {name for name, item in known.items() if item.default is item.empty and item.kind is not item.VAR_KEYWORD}
    missing = [name for name in known if name in empty - given]
    if shipped:  # their default of None is refused later
        missing += [name for name in ("control_image", "mask_image") if name in known and name not in given]
        missing += ["image"] if {"image", "strength"} <= known.keys() else []
    if missing:
        advice = "set model.control to a kind of control pictures, or " if "control_image" in missing else ""
        raise PipelineError(
            f"{asked} needs {', '.join(dict.fromkeys(missing))}, which the benchmark does not give; {advice}choose a "
            "pipeline that makes pictures of prompts"
        )
    if "prompt" not in known:
        raise PipelineError(f"{asked} takes no prompt; choose a pipeline that makes pictures of prompts")


def check_components(kind: Any, asked: str, found: Mapping[str, Any]) -> None:
    """Refuse a pipeline's class for components that are not its own.

    Args:
        asked: what named it, for messages.
        found: the folder's components by name, with their classes; None for one whose class is not known.

    Raises:
        PipelineError: one is missing, or of another class.
    """
    optional = set(getattr(kind, "_optional_components", ()))
    known = inspect.signature(kind.__init__).parameters
    for name, item in known.items():
        is_named = item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY) and item.default is item.empty
        if name != "self" and is_named and name not in optional and name not in found:
            raise PipelineError(
                f"{asked} needs a component {name}, which the model has not (it has {', '.join(found)}); choose "
                f"another pipeline, or add model.parts.{name}"
            )
    for name in ALIKE:
        wanted, own = _classes(kind, name), found.get(name)
        if wanted and own is not None and own.__name__ != LEGACY and not issubclass(own, wanted):
            told = " or ".join(each.__name__ for each in wanted)
            raise PipelineError(
                f"{asked} needs a {told} as its {name}, and the model's is a {own.__name__}; choose another pipeline, "
                "or another model"
            )


def _classes(kind: Any, name: str) -> tuple[type, ...]:
    """The classes of diffusers that an argument of its `__init__` may be of; none: not told."""
    try:
        hint = typing.get_type_hints(kind.__init__).get(name)
    except (NameError, AttributeError, TypeError):  # annotations that only type checkers can read
        return ()
    found = typing.get_args(hint) or (hint,)
    return tuple(each for each in found if inspect.isclass(each) and hasattr(each, "load_config"))


def check_inputs(pipeline: Any, call: Mapping[str, Any]) -> None:
    """Ask the pipeline itself whether it takes the arguments of its call.

    Raises:
        PipelineError: with what its `check_inputs` says.
    """
    check = getattr(pipeline, "check_inputs", None)
    if check is None:
        return
    defaults = inspect.signature(pipeline.__call__).parameters
    binned = call.get("use_resolution_binning", _default(defaults, "use_resolution_binning"))
    given = {"prompt": ["a"], **call, **(dict.fromkeys(("height", "width"), _WHOLE) if binned else {})}
    if isinstance(given.get("negative_prompt"), str):
        given["negative_prompt"] = [given["negative_prompt"]]
    names = inspect.signature(check).parameters
    if any(name in names for name in PICTURES):
        return  # it wants the pictures themselves
    try:
        check(**{name: given.get(name, _default(defaults, name)) for name in names})
    except ValueError as error:
        told = one_line(error)[:_SHOWN]
        keys = [f"model.call.{key}={call[key]}" for key in call if f"`{key}`" in told]
        raise PipelineError(
            f"{type(pipeline).__name__} refuses {', '.join(keys) or 'model.call'} ({told}); give other arguments"
        ) from error
    except (TypeError, AttributeError):  # it is called in another way, and sampling tells what is wrong
        return


def _default(parameters: Mapping[str, inspect.Parameter], name: str) -> Any:
    found = parameters.get(name)
    return None if found is None or found.default is found.empty else found.default
