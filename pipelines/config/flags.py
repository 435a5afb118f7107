"""The command line's flags, which may stand anywhere."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from hydra._internal.utils import get_args_parser

from segquant_bench.hints import nearest
from segquant_bench.pipelines.errors import PipelineError, one_of

MULTIRUN, COMPLETION = "--multirun", "--shell-completion"
MODES = ("--run", MULTIRUN, "--cfg", "--info", COMPLETION)
"""What is done; one of them."""
SHELLS = ("bash", "fish", "zsh")


def flags_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags by their whole names, with their values as "--flag=value", and everything else.

    Hydra alone takes overrides in one piece only.

    Raises:
        PipelineError: an unknown flag, a missing or wrong value, or flags that exclude one another.
    """
    known = get_args_parser()._option_string_actions
    flags: list[str] = []
    overrides: list[str] = []
    rest = [argument for argument in arguments if argument != "--"]
    while rest:
        argument = rest.pop(0)
        if argument.startswith("-"):
            flags.append(_flag(argument, rest, known))
        else:
            overrides.append(argument)
    _check(flags, overrides)
    return flags, overrides


def _flag(argument: str, rest: list[str], known: Mapping[str, argparse.Action]) -> str:
    """The whole flag; takes its value from the beginning of `rest`, where it has none of its own."""
    name, equals, value = argument.partition("=")
    action = known[_known_name(name, known)]
    whole = action.option_strings[0]
    if action.nargs == 0:
        if equals:
            raise PipelineError(f"{name} takes no value; leave ={value} out")
        return whole
    if not equals:
        follows = bool(rest) and not rest[0].startswith("-")
        if action.nargs == "?" and not (follows and rest[0] in (action.choices or ())):
            return f"{whole}={action.const}"
        if not follows:
            raise PipelineError(f"{name} needs a value; write {whole}=VALUE")
        value = rest.pop(0)
    if action.choices is not None:
        one_of(whole, value, action.choices)
    return f"{whole}={value}"


def _known_name(name: str, known: Mapping[str, argparse.Action]) -> str:
    if name in known:
        return name
    begun = [option for option in known if name.startswith("--") and option.startswith(name)]
    if len(begun) != 1:
        raise PipelineError(f"there is no flag {name}; {nearest(name, begun or known)}")
    return begun[0]


def _check(flags: Sequence[str], overrides: Sequence[str]) -> None:
    names = [flag.partition("=")[0] for flag in flags]
    modes = [mode for mode in MODES if mode in names]
    if len(modes) > 1:
        raise PipelineError(f"{' and '.join(modes)} exclude one another; leave all but one out")
    if "--resolve" in names and not {"--cfg", "--help"} & set(names):
        raise PipelineError("--resolve is for the configuration that --cfg shows; write --cfg job --resolve")
    if "--experimental-rerun" in names:
        raise PipelineError("--experimental-rerun reads a pickle, which can run any code; give the overrides again")
    if COMPLETION in names:
        _check_completion(overrides)


def _check_completion(overrides: Sequence[str]) -> None:
    asked = [override.partition("=") for override in overrides]
    told = [shell for key, _, shell in asked if key in ("install", "uninstall", "query")]
    if len(told) != 1 or told[0] not in SHELLS:
        raise PipelineError(
            f"{COMPLETION} needs one of install=SHELL, uninstall=SHELL and query=SHELL; SHELL is {', '.join(SHELLS)}"
        )
