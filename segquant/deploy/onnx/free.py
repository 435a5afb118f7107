"""A model traced with its sizes left free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn
from torch.export import ExportedProgram

from segquant.deploy.onnx import write
from segquant.deploy.onnx.dimensions import inputs_of
from segquant.deploy.onnx.inputs import Arguments
from segquant.deploy.onnx.manifest import Input
from segquant.deploy.onnx.sizes import right_sizes
from segquant.errors import QuantizationError
from segquant.layers.layer import QuantLayer


def traced_free(
    model: nn.Module, layers: Mapping[str, QuantLayer], forms: Mapping[str, str], arguments: Arguments
) -> tuple[ExportedProgram, list[Input]]:
    """The program, and the sizes at which it is right; a batch of one is traced as two where the model takes two."""
    for given in (doubled(arguments), arguments):
        if given is None:
            continue
        try:
            program = write.traced(model, layers, forms, given, True)
        except QuantizationError:
            if given is arguments:
                raise
            continue  # what was repeated is no batch
        found = inputs_of(program, given, right_sizes(program, model, layers, forms, given))
        if given is arguments or _takes(found, arguments):
            return program, found
    raise AssertionError("unreachable")


def traced_fixed(
    model: nn.Module, layers: Mapping[str, QuantLayer], forms: Mapping[str, str], arguments: Arguments
) -> tuple[ExportedProgram, list[Input]]:
    """The program of the example's sizes alone."""
    program = write.traced(model, layers, forms, arguments, False)
    return program, inputs_of(program, arguments)


def doubled(arguments: Arguments) -> Arguments | None:
    """The example with a batch of two in the place of one; None of other batches."""
    first = arguments.tensors[0]
    if not first.dim() or first.shape[0] != 1:
        return None
    tensors = [torch.cat([each, each]) if each.dim() and each.shape[0] == 1 else each for each in arguments.tensors]
    return dataclasses.replace(arguments, tensors=tensors)


def _takes(inputs: list[Input], arguments: Arguments) -> bool:
    return all(
        size.allows(count)
        for each, tensor in zip(inputs, arguments.tensors, strict=True)
        for size, count in zip(each.dimensions, tensor.shape, strict=True)
    )
