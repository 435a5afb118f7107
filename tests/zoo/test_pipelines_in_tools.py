"""The shipped pipelines under accelerate's hooks and torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from segquant import QuantizationError
from segquant.modules.tensors import tensors_of
from tests.zoo.in_use import InUse, blocks, relative


@pytest.mark.parametrize("first", ["offload", "quantize"])
def test_models_wait_on_the_cpu(zoo: InUse, first: str) -> None:
    """As enable_model_cpu_offload, with the CPU in the accelerator's place."""
    accelerate = pytest.importorskip("accelerate")
    pipe = zoo.quantized() if first == "quantize" else zoo.float_pipe()
    hook = None
    names = [
        name for name in pipe.model_cpu_offload_seq.split("->") if isinstance(getattr(pipe, name, None), nn.Module)
    ]
    for name in names:
        _, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), "cpu", prev_module_hook=hook)
    try:
        if first == "offload":
            zoo.quantize_(pipe)
        assert torch.equal(zoo.latents(pipe), zoo.plain())
    finally:
        for name in names:
            accelerate.hooks.remove_hook_from_module(getattr(pipe, name), recurse=True)
    assert torch.equal(zoo.latents(pipe), zoo.plain())


def test_layers_wait_on_the_cpu(zoo: InUse) -> None:
    """As enable_sequential_cpu_offload; set before, the hooks hide the weights from quantize_."""
    accelerate = pytest.importorskip("accelerate")
    pipe = zoo.quantized()
    for name, part in pipe.components.items():  # all: a pipeline runs where its first component without hooks is
        if isinstance(part, nn.Module):
            setattr(pipe, name, part if name in zoo.parts else copy.deepcopy(part))
            accelerate.cpu_offload(getattr(pipe, name), "cpu", offload_buffers=True)
    assert torch.equal(zoo.latents(pipe), zoo.plain())
    other = zoo.float_pipe()
    accelerate.cpu_offload(getattr(other, zoo.denoiser), "cpu")
    with pytest.raises(QuantizationError, match="has a hook of accelerate.*set them again"):
        zoo.quantize_(other)


COMPILED = [
    pytest.param("in place", 1, id="one"),
    pytest.param("in place", None, id="all", marks=pytest.mark.slow),
    pytest.param("wrapped", None, id="wrapped", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("first", [pytest.param("compile", marks=pytest.mark.slow), "quantize"])
@pytest.mark.parametrize(("way", "count"), COMPILED)
def test_blocks_are_compiled(zoo: InUse, way: str, count: int | None, first: str) -> None:
    pipe = zoo.quantized() if first == "quantize" else zoo.float_pipe()
    _compile(getattr(pipe, zoo.denoiser), way, count)
    if first == "compile":
        zoo.quantize_(pipe)
    try:
        assert torch.equal(zoo.latents(pipe), zoo.plain())
    finally:
        torch.compiler.reset()


def _compile(model: nn.Module, way: str, count: int | None) -> None:
    wanted = {id(block) for block in blocks(model)[:count]}
    for child in [child for child in model.modules() if isinstance(child, nn.ModuleList)]:
        for index, block in enumerate(child):
            if id(block) in wanted and way == "in place":
                block.compile(backend="eager", fullgraph=True)
            elif id(block) in wanted:
                child[index] = torch.compile(block, backend="eager", fullgraph=True)


@pytest.mark.slow
def test_one_block_by_inductor(zoo: InUse) -> None:
    """Fused kernels round otherwise, and a value that rounds to the other code moves the picture: a little by diffusion
    transformers, by the UNet within the rounding error.
    """
    pipe = zoo.quantized()
    block = blocks(getattr(pipe, zoo.denoiser))[0]
    twin, errors = copy.deepcopy(block), []
    twin.compile()

    def compare(_: nn.Module, args: Any, kwargs: Any, found: Any) -> None:
        pairs = zip(tensors_of(twin(*args, **kwargs)), tensors_of(found), strict=True)
        errors.extend(relative(*pair) for pair in pairs)

    hook = block.register_forward_hook(compare, with_kwargs=True)
    zoo.latents(pipe)
    hook.remove()
    assert errors and max(errors) < 0.02
    block.compile()
    most = 1.5 * relative(zoo.plain(), zoo.exact) if zoo.family == "sdxl" else 0.02
    assert relative(zoo.latents(pipe), zoo.plain()) < most
    torch.compiler.reset()
