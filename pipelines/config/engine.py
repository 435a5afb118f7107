"""What runs the denoiser: the group `run`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from segquant_bench.pipelines.config.booleans import Flag, check_flags
from segquant_bench.pipelines.errors import PipelineError, one_of

AUTO = "auto"
"""The exact kernels of the CPU where they run, else the reference."""
CPU, COMPILE, ORT, OPENVINO, CUDA = "cpu", "compile", "ort", "openvino", "cuda"
KERNELS = (CPU, CUDA)
"""Run quantized layers alone."""
EXPORTED = (ORT, OPENVINO)
"""Run a file."""
SETTINGS: dict[str, tuple[str, ...]] = {
    AUTO: (), "reference": (), CPU: ("fallback", "attention"), COMPILE: ("attention",), ORT: ("rest", "every_cpu"),
    OPENVINO: ("rest", "bfloat16", "attention"), CUDA: ("fallback",),
}  # fmt: skip
"""What may be set of each engine."""
RESTS = ("refuse", "float")
ATTENTIONS = ("torch", "float", "int8")
IN_FILES = ("torch", "int8")
"""Attention of an exported file: as the model's, or with products of queries and keys in 8-bit codes."""


@dataclass
class EngineConfig:
    """An engine; of configurations that name none, which are older ones, the reference.

    `fallback`: the backend for layers that cpu and cuda have no kernel for; null refuses them. `rest`: "float" lets ort
    and openvino multiply layers in float that they have no form for, "refuse" does not. `every_cpu`: weights of ort
    that are exact without VNNI too. `bfloat16`: of openvino, for what is not quantized. `attention`: of cpu and
    compile, the denoiser's softmax(q kᵀ) v by torch, or by the CPU's kernel with products of floats or 8-bit codes; of
    openvino, "int8" has q kᵀ in 8-bit codes.
    """

    name: str = "reference"
    fallback: str | None = None
    rest: str = "refuse"
    every_cpu: Flag = True
    bfloat16: Flag = False
    attention: str = ATTENTIONS[0]

    def __post_init__(self) -> None:
        one_of("run.name", self.name, tuple(SETTINGS))
        check_flags(self, "run.")
        one_of("run.rest", self.rest, RESTS)
        one_of("run.attention", self.attention, IN_FILES if self.name == OPENVINO else ATTENTIONS)
        for item in fields(self):
            if item.name not in ("name", *SETTINGS[self.name]) and getattr(self, item.name) != item.default:
                known = ", ".join(f"run.{key}" for key in SETTINGS[self.name]) or "nothing"
                raise PipelineError(f"run={self.name} has no setting run.{item.name}; of it may be set: {known}")

    def settings(self) -> dict[str, Any]:
        """Name, and what may be set of it; torch's attention, which earlier results had, is not told."""
        found = {key: getattr(self, key) for key in ("name", *SETTINGS[self.name])}
        if self.attention == ATTENTIONS[0]:
            found.pop("attention", None)
        return found
