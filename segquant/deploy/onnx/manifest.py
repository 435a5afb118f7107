"""What an exported file says of itself, as JSON in its metadata."""

from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import torch

from segquant.checks import check_fields, described
from segquant.errors import QuantizationError, first_line
from segquant.serialize.manifest import NUMBERS

KEY = "segquant"
SCHEMA = 1
LARGEST = 2**63 - 1
"""Of sizes."""
MODEL, DATA = "model.onnx", "model.onnx.data"


@dataclass(frozen=True)
class Dimension:
    """Sizes that an input's dimension may have.

    Args:
        name: dimensions of one name have one size (times their `multiple`); None: only `low` is allowed.
        multiple: sizes are multiples of it.
    """

    name: str | None
    low: int
    high: int | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.multiple < 1:
            raise QuantizationError(f"Dimension: multiple is {self.multiple}; give at least 1")
        if not 0 <= self.low <= LARGEST or not self.low <= (self.low if self.high is None else self.high) <= LARGEST:
            raise QuantizationError(
                f"Dimension: sizes from {self.low} to {self.high}; give at least 0, the lower first"
            )
        if self.name == "" or (self.name is None and self.high not in (None, self.low)):
            raise QuantizationError("Dimension: sizes that may differ have a name; give one, or low alone")

    def __str__(self) -> str:
        if self.name is None:
            return str(self.low)
        top = "" if self.high is None else str(self.high)
        steps = "" if self.multiple == 1 else f" by {self.multiple}"
        return f"{self.low}…{top}{steps}"

    def allows(self, size: int) -> bool:
        """Whether a size may be taken."""
        if self.name is None:
            return size == self.low
        return size >= self.low and (self.high is None or size <= self.high) and size % self.multiple == 0


@dataclass(frozen=True)
class Input:
    """One input: "float32", "int64" … and its dimensions."""

    name: str
    dtype: str
    dimensions: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(vars(torch).get(self.dtype), torch.dtype):
            raise QuantizationError(f"Input: dtype is {described(self.dtype)}; give the name of a dtype of torch")


@dataclass(frozen=True)
class Manifest:
    """Of one file.

    Args:
        parameters: of the forward, in order.
        constants: arguments that are built in.
        outputs: names of the forward's.
        layers: each quantized layer's form.
        every_cpu: no integer product saturates on CPUs without VNNI.
        attention: each attention's form, if products of queries and keys in 8-bit codes were asked for.
        data: bytes of the file of weights beside the model, 0: none.
        sha256: of the model's file, these characters as zeros; empty in the first exports.
        data_sha256: of the file of weights.
    """

    profile: str
    kind: str
    config: dict[str, Any]
    parameters: list[str]
    constants: dict[str, Any]
    inputs: list[Input]
    outputs: list[str]
    layers: dict[str, str]
    every_cpu: bool
    data: int = 0
    schema: int = SCHEMA
    sha256: str = ""
    data_sha256: str = ""
    attention: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        names = [each.name for each in self.inputs]
        if len(set(names)) < len(names):
            raise QuantizationError("Manifest: two inputs have one name; give each a name of its own")
        if self.data < 0:
            raise QuantizationError(f"Manifest: data is {self.data}; give bytes, 0 without a file")

    def dumped(self) -> str:
        """As JSON; without attention where it is all float, as in files of before."""
        values = dataclasses.asdict(self)
        if not self.attention:
            del values["attention"]
        return json.dumps(values, allow_nan=False)

    @staticmethod
    def loaded(text: str | None, source: str) -> Manifest:
        """From JSON.

        Raises:
            QuantizationError: it is none of ours, or of another version.
        """
        if text is None:
            raise QuantizationError(f"{source} was not written by export_onnx; export the model again")
        try:
            values = json.loads(text, **NUMBERS)
            if type(values.get("schema")) is not int or values["schema"] != SCHEMA:
                found = described(values.get("schema"))
                raise QuantizationError(f"{source} has schema {found}, this version reads {SCHEMA}; export again")
            if not values["outputs"]:
                raise ValueError("no outputs")
            namedtuple("Output", values["outputs"])  # as which it will be returned
            inputs = [
                Input(each["name"], each["dtype"], tuple(Dimension(**size) for size in each["dimensions"]))
                for each in values.pop("inputs")
            ]
            return Manifest(inputs=inputs, **values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if str(error).startswith(source):
                raise
            told = first_line(error)
            raise QuantizationError(f"{source} is damaged in what it says of itself ({told}); export again") from error
