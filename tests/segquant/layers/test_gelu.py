"""GELU in the same pass as the quantized linear before it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.nn.modules import module as everywhere

import segquant
from segquant import presets
from segquant.kernels.cpu import operators
from segquant.kernels.cpu.backend import Cpu
from segquant.kernels.reference import REFERENCE
from segquant.layers.gelu import AtOnce
from tests.segquant.kernels.layouts import errors, inputs
from tests.segquant.layers.test_attention import error, flux, out, sd3

REASON = operators.why_not_exact()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the cpu backend {REASON}")


HANDLES: list[Any] = []
SVD: dict[str, Any] = {"optimizer": "svd", "alpha": 0.5, "rank": 3}


class FeedForward(nn.Module):
    """Two of diffusers' modules, and a linear after them."""

    def __init__(self, approximate: str = "tanh") -> None:
        super().__init__()
        self.first, self.second = GELU(64, 192, approximate), GELU(192, 33, approximate)
        self.down = nn.Linear(33, 64)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(self.second(self.first(x)))
        return made


def quantized(precision: str = "w8a8_dynamic", approximate: str = "tanh", **own: Any) -> FeedForward:
    model = FeedForward(approximate)
    down = {"down": {"precision": "w8a8_dynamic"}}  # 33 inputs, which groups do not divide
    method = segquant.Method.of("own", precision, overrides=down, **own)
    segquant.quantize_(model, method, [inputs(9, 64, seed=seed) for seed in range(3)])
    segquant.set_backend_(model, "cpu")
    return model


def plain(model: Any, x: Tensor) -> Tensor:
    """One after the other."""
    first = nnf.gelu(model.first.proj(x), approximate=model.first.approximate)
    made: Tensor = model.down(nnf.gelu(model.second.proj(first), approximate=model.second.approximate))
    return made


def at_once(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, AtOnce)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("precision", "own"), [
    ("w8a8", {"dualscale": True}), ("w8a8_tensor", SVD), ("w8a8_dynamic", {}), ("w4a8", SVD), ("fp8", {}),
    ("w4a16", {}),
])  # fmt: skip
def test_it_is_one_after_the_other(precision: str, own: dict[str, Any], dtype: torch.dtype) -> None:
    model = quantized(precision, **own)
    assert at_once(model) == ["first", "second"]
    for shape in ((5, 64), (2, 7, 64), (0, 64), (64,)):
        x = inputs(*shape).to(dtype)
        found, expected = model.first(x), nnf.gelu(model.first.proj(x), approximate="tanh")
        if x.numel() and dtype == torch.float16:
            assert torch.equal(found, expected)
        elif x.numel():
            assert errors(found, expected)[1] < (1e-6 if dtype == torch.float32 else 8e-3)
        assert found.shape == expected.shape and found.dtype == expected.dtype == dtype


def test_transforms_outside_the_operator_are_told_apart() -> None:
    model = quantized("w8a8_dynamic", rotate=True)
    assert at_once(model) == [] and not any(each.with_gelu for each in segquant.set_backend_(model, "cpu"))


@pytest.mark.parametrize("value", [-7e4, float("nan"), float("inf")])
def test_what_float16_cannot_hold_is_that_of_one_after_the_other(value: float) -> None:
    model, x = quantized(), torch.zeros(2, 64, dtype=torch.float16)
    model.first.proj.bias.data[0] = value
    found, expected = model.first(x), nnf.gelu(model.first.proj(x), approximate="tanh")
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_only_the_tanh_form_of_a_quantized_linear_by_such_a_backend() -> None:
    assert at_once(quantized(approximate="none")) == []
    model = quantized()
    model.first.proj = nn.Linear(64, 192)
    segquant.set_backend_(model, "cpu")
    assert at_once(model) == ["second"]
    segquant.set_backend_(model, "reference")
    assert at_once(model) == [] and type(model.second) is GELU


def test_the_table_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    table = segquant.set_backend_(quantized(), "auto", strict=True)
    assert {each.layer: each.with_gelu for each in table} == {"first.proj": True, "second.proj": True, "down": False}
    assert {each.reason for each in table} == {""}
    assert "first.proj   1       cpu      with the GELU after it" in capsys.readouterr().out


def _hooked(model: Any, seen: list[Tensor]) -> None:
    model.first.proj.register_forward_hook(lambda *given: seen.append(given[2]))


def _hooked_everywhere(model: Any, seen: list[Tensor]) -> None:
    def see(module: nn.Module, _: Any, output: Tensor) -> None:
        if module is model.first.proj:
            seen.append(output)

    HANDLES.append(everywhere.register_module_forward_hook(see))


@pytest.fixture(autouse=True)
def _without_hooks() -> Iterator[None]:
    yield
    while HANDLES:
        HANDLES.pop().remove()


def _offloaded(model: Any, seen: list[Tensor]) -> None:
    forward = model.first.proj.forward

    def own(x: Tensor) -> Tensor:
        seen.append(forward(x))
        return seen[-1]

    model.first.proj.forward = own


class Beside(nn.Module):
    """An adapter around a layer, as peft's."""

    def __init__(self, layer: nn.Module, seen: list[Tensor]) -> None:
        super().__init__()
        self.base_layer, self.seen = layer, seen

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.base_layer(x)
        self.seen.append(made)
        return made


def _wrapped(model: Any, seen: list[Tensor]) -> None:
    model.first.proj = Beside(model.first.proj, seen)


@pytest.mark.parametrize("watch", [_hooked, _hooked_everywhere, _offloaded, _wrapped])
def test_who_looks_at_the_linear_sees_the_linear(watch: Callable[[Any, list[Tensor]], None]) -> None:
    model, seen, x = quantized(), list[Tensor](), inputs(5, 64)
    expected = model.first.proj(x)
    watch(model, seen)
    found = model.first(x)
    assert len(seen) == 1 and torch.equal(seen[0], expected)
    assert torch.equal(found, nnf.gelu(expected, approximate="tanh"))


def test_another_backend_of_a_layer_and_what_is_written_to_a_bias_hold() -> None:
    model, x = quantized(), inputs(5, 64)
    model.first.proj.bias.data.add_(1)
    assert errors(model.first(x), nnf.gelu(model.first.proj(x), approximate="tanh"))[1] < 1e-6
    model.first.proj.backend = REFERENCE
    assert torch.equal(model.first(x), nnf.gelu(model.first.proj(x), approximate="tanh"))


def test_gradients_pass_as_before() -> None:
    model, x = quantized(), inputs(5, 64).requires_grad_()
    model(x).sum().backward()
    own, x.grad = x.grad, None
    plain(model, x).sum().backward()
    assert own is not None and x.grad is not None and torch.equal(own, x.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_do_as_it_does(copied: Callable[[Any], Any]) -> None:
    model, x = quantized(), inputs(5, 64)
    other = copied(model)
    assert at_once(other) == at_once(model) and isinstance(other.first, GELU)
    assert torch.equal(other(x), model(x))
    other.first.proj.bias.data.add_(1)
    assert not torch.equal(other(x), model(x))


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(segquant.QuantizationError, match=r"takes \[\.\.\., 64\]"):
        quantized().first(inputs(5, 63))


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_of_diffusers_models(kind: str) -> None:
    model, call = {"sd3": sd3, "flux": flux}[kind]()
    segquant.quantize_(model, presets.rtn("w8a8_dynamic"), [call])
    segquant.set_backend_(model, "reference")
    expected = out(model, call)
    segquant.set_backend_(model, "cpu")
    assert at_once(model)
    assert error(out(model, call), expected) < 2e-2  # codes on two sides of a tie


def test_compilers_and_exporters_take_it() -> None:
    model, x, other = quantized("w8a8"), inputs(6, 64), inputs(9, 64)
    expected = model(x), model(other)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(compiled(x), expected[0]) and torch.equal(compiled(other), expected[1])
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert sum("linear_gelu" in str(node.target) for node in program.graph.nodes) == 2
    assert torch.equal(program.module()(other), expected[1])


def test_who_does_gelu_otherwise_is_asked() -> None:
    model, x = quantized(), inputs(5, 64)
    linear = model.first.proj(x)
    model.first.approximate = "none"
    assert torch.equal(model.first(x), nnf.gelu(linear))
    model.first.gelu = lambda values: values + 3
    assert torch.equal(model.first(x), linear + 3)


def test_a_forward_that_somebody_keeps_goes_on_with_any_backend() -> None:
    """As accelerate's hooks do, which put themselves before it."""
    model, x = quantized(), inputs(5, 64)
    kept = model.first.forward
    segquant.set_backend_(model, "reference")
    assert torch.equal(kept(x), nnf.gelu(model.first.proj(x), approximate="tanh"))
    model.first.proj.register_forward_hook(lambda *_: None)
    assert torch.equal(kept(x), nnf.gelu(model.first.proj(x), approximate="tanh"))


def test_a_class_that_somebody_made_of_it_stays() -> None:
    model, x = quantized(), inputs(5, 64)
    model.first.__class__ = type("Own", (type(model.first),), {})
    segquant.set_backend_(model, "cpu")
    assert type(model.first).__name__ == "Own"
    assert errors(model.first(x), nnf.gelu(model.first.proj(x), approximate="tanh"))[1] < 1e-6


def test_a_backend_made_of_it_multiplies_by_its_own_product() -> None:
    @dataclass(frozen=True)
    class Doubled(Cpu):
        name: ClassVar[str] = "doubled"

        def product(self, rows: Tensor, arguments: tuple[Any, ...], extra: Any) -> Tensor:
            return 2 * super().product(rows, arguments, extra)

    model, x = quantized(), inputs(5, 64)
    expected = nnf.gelu(2 * model.first.proj(x), approximate="tanh")
    model.first.proj.backend = Doubled()
    assert errors(model.first(x), expected)[1] < 1e-6


def test_two_modules_may_share_a_linear() -> None:
    model = quantized()
    model.also = GELU(64, 192, "tanh")
    model.also.proj = model.first.proj
    table = segquant.set_backend_(model, "cpu")
    assert at_once(model) == ["first", "second", "also"]
    assert [each.layer for each in table if each.with_gelu] == ["first.proj", "second.proj"]
