"""Example arguments of a denoiser's forward.

In `inputs.json` a tensor is {"shape": […], "dtype": …}; sizes are numbers or expressions of configuration keys. "$if"
leaves an argument out where false. "$sizes" names sizes of the `Call`: the first expression counts whose names are
all known.
"""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from segquant_bench.pipelines.errors import PipelineError

INPUTS = Path(__file__).resolve().with_name("inputs.json")
_CONDITION, _SIZES = "$if", "$sizes"
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


class Call(TypedDict, total=False):
    """What is known of a pipeline's call.

    Args:
        height, width: in pixels.
        tokenizer_length: tokens that the first tokenizer pads to.
        vae_scale: pixels per latent, in each direction.
    """

    height: int
    width: int
    max_sequence_length: int
    tokenizer_length: int
    vae_scale: int


def known_classes() -> tuple[str, ...]:
    return tuple(json.loads(INPUTS.read_text(encoding="utf-8")))


def example_inputs(
    class_name: str, config: Mapping[str, Any], device: str = "meta", call: Call | None = None
) -> dict[str, Any]:
    """Keyword arguments of one forward call; batch of one, uninitialized.

    Args:
        config: with defaults filled in.
        call: of the pipeline; what it lacks is by default.

    Raises:
        PipelineError: an unknown class, or a size is missing.
    """
    arguments = json.loads(INPUTS.read_text(encoding="utf-8")).get(class_name)
    if arguments is None:
        raise PipelineError(
            f"what a pipeline passes to {class_name} is not known (known are {', '.join(known_classes())}); give it as "
            "model.inputs={ARGUMENT: SHAPE, …}, or model.target=MODULE:FUNCTION that returns (module, arguments)"
        )
    try:
        known = {**config, **(call or {})}
        for name, choices in arguments.pop(_SIZES, {}).items():
            known[name] = _first(choices, known)
        found: dict[str, Any] = filled(arguments, known, device)
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"the arguments of {class_name} do not follow from its configuration: {error}") from error


def _first(choices: list[Any], known: Mapping[str, Any]) -> Any:
    for choice in choices[:-1]:
        names = {node.id for node in ast.walk(ast.parse(choice)) if isinstance(node, ast.Name)}
        if names <= known.keys():
            return evaluate(choice, known)
    return evaluate(choices[-1], known) if isinstance(choices[-1], str) else choices[-1]


def filled(value: Any, config: Mapping[str, Any], device: str) -> Any:
    """`value` with tensors for their descriptions; "$if" decided."""
    import torch  # put off: slow, and a finished run needs none of it

    if isinstance(value, list):
        return [filled(item, config, device) for item in value]
    if not isinstance(value, dict):
        return value
    if "shape" in value:
        sizes = [evaluate(size, config) if isinstance(size, str) else size for size in value["shape"]]
        return torch.empty(sizes, dtype=getattr(torch, value.get("dtype", "float32")), device=device)
    return {
        key: filled(item, config, device) for key, item in value.items() if key != _CONDITION and _holds(item, config)
    }


def _holds(value: Any, config: Mapping[str, Any]) -> bool:
    return not isinstance(value, dict) or bool(evaluate(value.get(_CONDITION, "True"), config))


def evaluate(expression: str, config: Mapping[str, Any]) -> Any:
    """Value of an expression of keys and constants with +, -, *, // and ==.

    Raises:
        ValueError: a missing key, or other syntax.
    """

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            if node.id not in config:
                raise ValueError(f"no {node.id!r} in it, for {expression!r}")
            return config[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
            return value(node.left) == value(node.comparators[0])
        raise ValueError(f"{ast.unparse(node)!r} is no sum, product or comparison, in {expression!r}")

    return value(ast.parse(expression, mode="eval").body)
