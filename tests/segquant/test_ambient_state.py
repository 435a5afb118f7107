"""What a script sets around the library: the same numbers, no crash, and everything is left as it was."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant import QuantLinear, presets
from segquant.measure import model_errors
from segquant.modules.state import PRECISIONS, own_state
from segquant.offload.quantize import quantize_offloaded_
from segquant.offload.weights import Offloaded


class Net(nn.Module):
    """A convolution, and two blocks with a norm, a concatenation and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 32, 2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(32), "up": nn.Linear(32, 64), "down": nn.Linear(96, 32)})
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            y = torch.cat((x, nn.functional.silu(block["up"](block["norm"](x)))), -1)
            x = x + block["down"](y)
        return x


def made(seed: int = 0) -> Net:
    model, generator = Net(), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
        parameter.data = spread * (0.2 if parameter.ndim > 1 else 0.05) + (parameter.ndim == 1)
    return model


def batches(count: int = 5, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, 4, 4, generator=generator, dtype=torch.float32, device="cpu") for _ in range(count)]


with torch.device("cpu"):
    MODEL, BATCHES, LAYER = made(), batches(), nn.Linear(8, 4)
    SEGMENTS = segquant.find_segments(MODEL, (BATCHES[0],))  # which `find_segments` is compared with


def precision(value: str) -> None:
    torch.set_float32_matmul_precision(value)


@contextmanager
def switched(change: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(back)


def deterministic(mode: str | None) -> None:
    torch.use_deterministic_algorithms(mode is not None, warn_only=mode == "warn")


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "meta": lambda: torch.device("meta"),
    "meta_default": lambda: switched(torch.set_default_device, "meta", None),
    "deterministic": lambda: switched(deterministic, "raise", None),
    "deterministic_warn": lambda: switched(deterministic, "warn", None),
    "seed": lambda: switched(torch.manual_seed, 123, 0),
    "medium": lambda: switched(precision, "medium", "highest"),
}
every_state = pytest.mark.parametrize("state", STATES)


def ambient() -> dict[str, Any]:
    """What scripts can set."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.get_deterministic_debug_mode(),
        "random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "products": (torch.get_float32_matmul_precision(), [place.fp32_precision for place in PRECISIONS]),
    }  # fmt: skip


METHODS = {
    "rtn": lambda: presets.rtn("w8a8_dynamic", convolutions=True),
    "segquant_g": lambda: presets.segquant_g("w8a8_tensor", bias_correction=True),
    "segquant_r": lambda: presets.segquant_r("w4a8", rank=2, svd="randomized", seglinear=False),
    "ptq4dit": lambda: presets.ptq4dit("fp8"),
    "awq": lambda: presets.awq("w4a8"),
    "percentile": lambda: presets.percentile("w8a8", dualscale=True),
    "q_diffusion": lambda: presets.q_diffusion("w8a8_tensor", reconstruction={"steps": 3}),
}


def numbers(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def quantized(name: str) -> nn.Module:
    return segquant.quantize_(copy.deepcopy(MODEL), METHODS[name](), BATCHES, SEGMENTS)


def statistics() -> dict[str, Tensor]:
    found = segquant.observe(MODEL, BATCHES, gram=True, salience=True, reservoir=16)
    parts = ("positive", "negative", "mean_square", "sample", "gram", "salience")
    return {f"{name}.{part}": getattr(stats, part) for name, stats in found.items() for part in parts}


def one_layer() -> dict[str, Tensor]:
    stats = segquant.InputStats("layer", 8, keep_gram=True)
    for index, batch in enumerate(BATCHES):
        stats.update(batch.reshape(-1, 8), index % 4)
    found = QuantLinear.from_float(LAYER, presets.segquant_g("w4a8_channel", rank=1), stats)
    return {**numbers(found), "weight": found.weight, "output": found(BATCHES[0].reshape(-1, 8))}


def measured() -> dict[str, Any]:
    other = known("segquant_g")
    whole = model_errors(MODEL, other, BATCHES)
    return {
        "layers": segquant.layer_errors(MODEL, other, BATCHES),
        "errors": (segquant.output_error(MODEL, other, BATCHES), segquant.output_errors(MODEL, other, BATCHES)),
        "both": (whole.layers, whole.output, whole.parts, segquant.model_weight_bytes(other)),
        "runs": {each.layer: each.backend for each in segquant.set_backend_(other, "reference")},
    }


def offloaded() -> dict[str, Tensor]:
    stored = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    model = Offloaded(copy.deepcopy(MODEL), lambda names: {name: stored[name] for name in names})
    return numbers(quantize_offloaded_(model, METHODS["segquant_g"](), BATCHES, SEGMENTS))


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: lambda name=name: numbers(quantized(name)) for name in METHODS},  # type: ignore[misc]
    "observe": statistics,
    "from_float": one_layer,
    "find_segments": lambda: segquant.find_segments(MODEL, (BATCHES[0],)),
    "measure": measured,
    "offload": offloaded,
}


@cache
def known(name: str) -> nn.Module:
    with torch.device("cpu"):
        return quantized(name)


@cache
def clean(entry: str) -> dict[str, Any]:
    return ENTRIES[entry]()


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) else a == b

    return found.keys() == expected.keys() and all(equal(found[key], value) for key, value in expected.items())


@every_state
@pytest.mark.parametrize("entry", ENTRIES)
def test_same_numbers_in_every_state(entry: str, state: str) -> None:
    expected, hooks = clean(entry), known("segquant_g")
    with STATES[state]():
        before = ambient()
        found = ENTRIES[entry]()
        assert ambient() == before
    assert same(found, expected) and hooks is known("segquant_g")


def test_same_numbers_with_other_numbers_of_threads() -> None:
    expected = clean("observe"), clean("rtn")
    with switched(torch.set_num_threads, 3, torch.get_num_threads()):
        found = statistics(), numbers(quantized("rtn"))
        assert torch.get_num_threads() == 3
    assert all(map(same, found, expected))


@every_state
@pytest.mark.parametrize("name", ["segquant_g", "segquant_r", "rtn"])
def test_quantized_layers_run_in_every_state(name: str, state: str) -> None:
    model = copy.deepcopy(known(name))
    layers = [layer for layer in model.modules() if type(layer) is QuantLinear]
    rows = BATCHES[0].reshape(2, -1)
    inputs = [rows.repeat(1, 3)[:, : layer.in_features] for layer in layers]
    with torch.no_grad():
        expected = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    for layer in layers:
        layer.forget_packed()
    with STATES[state]():
        before = ambient()
        found = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        assert ambient() == before
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # and gradients still reach the input, whatever was kept in that state
    x = inputs[0].clone().requires_grad_()
    layers[0](x).sum().backward()
    assert x.grad is not None


@every_state
def test_saved_and_loaded_in_every_state(state: str, tmp_path: Path) -> None:
    from diffusers import DiTTransformer2DModel

    with torch.random.fork_rng([]):
        model = DiTTransformer2DModel(
            num_attention_heads=1, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=1, sample_size=4,
            patch_size=2, num_embeds_ada_norm=4, norm_num_groups=1,
        ).eval()  # fmt: skip
    segquant.quantize_(model, presets.rtn("w4a8_channel"), [])
    with STATES[state]():
        before = ambient()
        loaded = segquant.load_quantized(segquant.save_quantized(model, tmp_path / "model"))
        assert ambient() == before
    tensors = (model.named_parameters, model.named_buffers), (loaded.named_parameters, loaded.named_buffers)
    expected, found = (dict(pair for named in side for pair in named()) for side in tensors)
    assert same(found, expected) and all(tensor.device.type == "cpu" for tensor in found.values())


@pytest.mark.parametrize("name", ["segquant_g", "q_diffusion", "rtn"])
def test_a_model_made_in_inference_mode(name: str) -> None:
    with torch.inference_mode():
        model, data = made(), batches()
        segquant.quantize_(model, METHODS[name](), data)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    assert not any(buffer.is_inference() for layer in layers for buffer in layer.buffers())
    assert same(numbers(model), clean(name))
    with torch.inference_mode():
        model, data = made(), batches()
    segquant.quantize_(model, METHODS[name](), data)
    assert same(numbers(model), clean(name))


class Noisy(nn.Module):
    """Draws noise, changes its input in place, and seeds torch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.mul_(1) + torch.randn_like(x))
        torch.manual_seed(7)
        return y


def test_noise_in_a_forward_is_the_same_for_every_seed_and_takes_no_random_numbers() -> None:
    model, found = Noisy(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with torch.inference_mode():
            data = [torch.ones(3, 8), torch.ones(3, 8) * 2]
        stats = segquant.observe(model, data)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(stats["linear"].sample)
    assert torch.equal(*found)
    assert segquant.output_error(model, copy.deepcopy(model), [torch.ones(3, 8)]) == 0, "both draw the same noise"


def test_batches_are_drawn_with_the_callers_random_numbers() -> None:
    torch.manual_seed(5)
    expected = [torch.randn(4, 8) for _ in range(3)]
    model, drawn = nn.Sequential(nn.Linear(8, 8)), []
    torch.manual_seed(5)
    segquant.observe(model, (drawn.append(x := torch.randn(4, 8)) or x for _ in range(3)))
    assert all(map(torch.equal, drawn, expected))


def test_states_inside_each_other_and_in_errors() -> None:
    precision("medium")
    try:
        with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), own_state():
            with own_state():
                assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
                assert all(place.fp32_precision in ("ieee", "none") for place in PRECISIONS)
            assert all(place.fp32_precision in ("ieee", "none") for place in PRECISIONS)
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium" and torch.is_grad_enabled()
    finally:
        precision("highest")


def test_a_rotation_is_not_kept_from_a_run_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from segquant.numerics import hadamard

    hadamard._cached_matrix.cache_clear()
    signs = hadamard.random_signs(8, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        hadamard.rotate(torch.empty(2, 8), (8,), signs)
    assert type(hadamard.rotate(torch.eye(8), (8,), signs)) is Tensor


FACTORIES = {"arange", "empty", "eye", "full", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros"}


def test_every_tensor_is_made_with_a_dtype_and_a_device() -> None:
    """Without, it follows the defaults that a script may have set."""
    found = []
    for path in sorted(Path(segquant.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in FACTORIES}:
                missing = {"dtype", "device"} - {keyword.arg for keyword in node.keywords}
                found += [f"{path.name}:{node.lineno} {ast.unparse(node.func)} without {key}" for key in missing]
    assert not found
