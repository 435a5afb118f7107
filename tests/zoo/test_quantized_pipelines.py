"""The shipped pipelines in the hands of their users: adapters, casts, fusing, callbacks, batches, copies, threads."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant import QuantizationError, QuantLinear
from tests.zoo.in_use import DYNAMIC, METHODS, MOST, STATIC, InUse, relative

NEAR = {("sdxl", STATIC): 0.15}  # its UNet's convolutions have one input scale each; smoothquant's error is 0.10
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
def test_pictures_are_near_the_float_models(zoo: InUse, method: str) -> None:
    found = zoo.plain(method)
    assert 0 < relative(found, zoo.exact) < NEAR.get((zoo.family, method), 0.1)
    assert torch.equal(zoo.plain(method), found)


@pytest.mark.parametrize("method", [DYNAMIC])
def test_adapters_are_loaded_before_and_after(zoo: InUse, method: str) -> None:
    """Rounding to nearest sees no inputs, so both ways are the same to the bit."""
    pytest.importorskip("peft")
    exact = zoo.float_pipe()
    exact.load_lora_weights(zoo.lora())
    wanted = zoo.latents(exact)
    assert relative(wanted, zoo.exact) > 0.2
    after = zoo.quantized(method)
    after.load_lora_weights(zoo.lora())
    found = zoo.latents(after)
    assert relative(found, wanted) < 0.1
    before = exact
    zoo.quantize_(before, method)
    assert torch.equal(zoo.latents(before), found)
    for pipe in (before, after):
        pipe.disable_lora()
        assert torch.equal(zoo.latents(pipe), zoo.plain(method))
        pipe.enable_lora()
        with pytest.raises(QuantizationError, match="leave it beside the layers"):
            pipe.fuse_lora(components=[zoo.denoiser])
        assert torch.equal(zoo.latents(pipe), found)
        pipe.unload_lora_weights()
        assert torch.equal(zoo.latents(pipe), zoo.plain(method))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_adapters_are_weighted_and_exchanged(zoo: InUse) -> None:
    pytest.importorskip("peft")
    pipe = zoo.quantized()
    for seed, name in enumerate(("one", "two")):
        pipe.load_lora_weights(zoo.lora(seed), adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.0, 0.0])
    assert relative(zoo.latents(pipe), zoo.plain()) < 1e-6
    pipe.set_adapters(["one"], [1.0])
    one = zoo.latents(pipe)
    alone = zoo.quantized()
    alone.load_lora_weights(zoo.lora(0))
    assert torch.equal(zoo.latents(alone), one)
    pipe.set_adapters("two")
    assert not torch.equal(zoo.latents(pipe), one)
    pipe.delete_adapters(["one", "two"])
    assert torch.equal(zoo.latents(pipe), zoo.plain())


def test_a_cast_quantizes_the_same(zoo: InUse) -> None:
    """The shipped weights are bfloat16, so that casting before or after makes no difference to a rounded weight."""
    cast, direct = zoo.quantized().to(torch.bfloat16), zoo.float_pipe().to(torch.bfloat16)
    try:
        zoo.quantize_(direct)
        found = zoo.latents(cast)
        assert found.dtype == torch.bfloat16 and torch.equal(found, zoo.latents(direct))
    finally:
        zoo.pipe.to(torch.float32)
    assert relative(found, zoo.plain()) < 0.1


@each_method
def test_casts_are_saved(zoo: InUse, method: str, tmp_path: Path) -> None:
    pipe = zoo.quantized(method)
    getattr(pipe, zoo.denoiser).to(torch.bfloat16).to(torch.float32)
    found = zoo.latents(pipe)
    again = copy.copy(pipe)
    segquant.save_quantized(getattr(pipe, zoo.denoiser), tmp_path / "model")
    setattr(again, zoo.denoiser, segquant.load_quantized(tmp_path / "model"))
    assert torch.equal(zoo.latents(again), found)


@each_method
def test_channels_last(zoo: InUse, method: str) -> None:
    """Every layer does the same with its input in either order. Float convolutions differ in last bits, and one that
    crosses a rounding boundary moves a code, so that whole pictures differ within the rounding error.
    """
    pipe = zoo.quantized(method)
    getattr(pipe, zoo.denoiser).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for layer, (x, found) in zoo.layer_calls(pipe).items():
            assert relative(layer(x.clone(memory_format=torch.contiguous_format)), found) < 1e-5
    assert relative(zoo.latents(pipe), zoo.plain(method)) < 1.5 * relative(zoo.plain(method), zoo.exact)


def test_channels_last_before(zoo: InUse) -> None:
    """Codes of rounded weights are the same."""
    early = zoo.float_pipe()
    getattr(early, zoo.denoiser).to(memory_format=torch.channels_last)
    zoo.quantize_(early)
    states = [getattr(pipe, zoo.denoiser).state_dict() for pipe in (early, zoo.quantized())]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_projections_are_fused_before_and_not_after(zoo: InUse) -> None:
    late = zoo.quantized()
    with pytest.raises(QuantizationError, match="fuse before quantize_"):
        getattr(late, zoo.denoiser).fuse_qkv_projections()
    assert torch.equal(zoo.latents(late), zoo.plain())
    early = zoo.float_pipe()
    getattr(early, zoo.denoiser).fuse_qkv_projections()
    exact = zoo.latents(early)  # with emoji_sd3 another picture: diffusers' fused processor leaves out its norms
    zoo.quantize_(early)
    assert relative(zoo.latents(early), exact) < 0.1


def test_attention_processors_are_exchanged(zoo: InUse) -> None:
    pipe, seen = zoo.quantized(), []
    model = getattr(pipe, zoo.denoiser)

    def reading(processor: Any) -> Any:
        class Reading(type(processor)):  # type: ignore[misc]
            def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
                seen.append((attn.to_q.weight.dtype, attn.to_q.weight.shape))
                return super().__call__(attn, *args, **kwargs)

        return Reading()

    model.set_attn_processor({name: reading(processor) for name, processor in model.attn_processors.items()})
    assert torch.equal(zoo.latents(pipe), zoo.plain())
    assert len(seen) >= 2 * len(model.attn_processors) and {dtype for dtype, _ in seen} == {torch.float32}


def test_a_callback_reads_layers(zoo: InUse) -> None:
    pipe = zoo.quantized()
    model, seen = getattr(pipe, zoo.denoiser), []
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, QuantLinear)]

    def read(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        for name, layer in layers:
            seen.append((name, layer.weight.dtype, layer.weight.device.type, float(layer.weight.norm())))
        return values

    assert torch.equal(zoo.latents(pipe, callback_on_step_end=read), zoo.plain())
    assert len(seen) == 2 * len(layers) > 0
    floats = zoo.parts[zoo.denoiser].requires_grad_(False)
    for name, dtype, device, norm in seen:
        assert dtype == torch.float32 and device == "cpu"
        assert norm == pytest.approx(float(floats.get_submodule(name).weight.norm()), rel=0.01)


@each_method
def test_a_picture_does_not_depend_on_its_batch(zoo: InUse, method: str) -> None:
    """Every layer treats a row alike in any batch. Last bits of a product differ with its shape, even in floating
    point; one that crosses a rounding boundary moves a code, so that whole pictures differ within the rounding error.
    """
    pipe = zoo.quantized(method)
    everyone = tuple(range(MOST))
    with torch.no_grad():
        for layer, (x, found) in zoo.layer_calls(pipe, everyone).items():
            assert relative(layer(x[:1]), found[:1]) < 1e-5
    batch = zoo.latents(pipe, everyone)
    alone = torch.cat([zoo.latents(pipe, (index,)) for index in (0, MOST - 1)])
    assert relative(batch[[0, MOST - 1]], alone) < 1.5 * relative(zoo.plain(method), zoo.exact)


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _saved,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_draw_the_same_and_are_their_own(zoo: InUse, way: str, untaught: None, tmp_path: Path) -> None:
    pipe = zoo.quantized()
    other = zoo.with_parts({name: COPIES[way](getattr(pipe, name)) for name in zoo.parts})
    assert torch.equal(zoo.latents(other), zoo.plain())
    for part in getattr(other, zoo.denoiser).modules():
        if isinstance(part, QuantLinear):
            part.weight_scale.mul_(0.5)
    assert not torch.equal(zoo.latents(other), zoo.plain()) and torch.equal(zoo.latents(pipe), zoo.plain())
    with pytest.raises(QuantizationError, match=r"segquant.save_quantized\(model, directory\)"):
        getattr(other, zoo.denoiser).save_pretrained(tmp_path / "nowhere")


@each_method
def test_threads_share_the_networks(zoo: InUse, method: str) -> None:
    """Each has a pipeline, hence a scheduler and tokenizers, of its own."""
    one = zoo.quantized(method)
    pipes = [one, zoo.with_parts({name: getattr(one, name) for name in zoo.parts})]
    draws = [(0, 1), (2, 3)]
    with ThreadPoolExecutor(2) as pool:
        together: list[Tensor] = list(pool.map(zoo.latents, pipes, draws))
    alone = [zoo.latents(zoo.quantized(method), indices) for indices in draws]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert torch.equal(alone[0], zoo.plain(method))
