"""What the library sets for itself is set inside alone, also where the inside fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segquant import QuantizationError
from segquant.modules.state import building, check_seed, normal, normal_weights, own_random, own_state


class Stop(Exception):
    pass


def test_a_model_is_built_in_float32_on_the_cpu_without_the_callers_random_numbers() -> None:
    before, state = torch.get_default_dtype(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), pytest.raises(Stop), building():
            built = nn.Linear(2, 2)
            raise Stop
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert (built.weight.dtype, built.weight.device.type) == (torch.float32, "cpu")
    assert torch.equal(torch.get_rng_state(), state)


def test_random_numbers_are_the_same_every_time_and_none_of_the_callers() -> None:
    model, drawn = nn.Linear(1, 1), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        with pytest.raises(Stop), own_random(model):
            drawn.append(torch.rand(3))
            raise Stop
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(*drawn)


def _shared() -> nn.Module:
    """Made in inference mode: a parameter and a buffer under two names each; one parameter is a normal one."""
    model = nn.Module()
    with torch.inference_mode():
        model.a, model.other = nn.Linear(2, 2), nn.Module()
        model.other.b = model.a.weight
        model.register_buffer("table", torch.ones(2))
        model.other.register_buffer("again", model.table)
    model.own = nn.Parameter(torch.zeros(2))
    return model


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def test_weights_of_inference_mode_are_normal_inside_and_the_same_afterwards() -> None:
    model = _shared()
    before, names = _tensors(model), set(model.state_dict())
    with pytest.raises(Stop), normal_weights(model):
        assert not any(tensor.is_inference() for tensor in _tensors(model))
        assert model.other.b is model.a.weight and model.other.again is model.table
        assert isinstance(model.a.weight, nn.Parameter) and not model.a.weight.requires_grad
        assert not isinstance(model.table, nn.Parameter) and model.own.requires_grad
        assert all(torch.equal(a, b) for a, b in zip(_tensors(model), before, strict=True))
        raise Stop
    assert all(a is b for a, b in zip(_tensors(model), before, strict=True)) and set(model.state_dict()) == names


def test_a_tensor_of_inference_mode_becomes_a_normal_one() -> None:
    with torch.inference_mode():
        made = torch.ones(2)
        assert normal(made) is made
    assert not normal(made).is_inference() and torch.equal(normal(made), made)
    plain = torch.ones(2)
    assert normal(plain) is plain


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**63, 2**64])
def test_seeds_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(QuantizationError, match="does not fit in 64 bits; give a smaller one"):
        check_seed(seed)
    for fits in (-(2**63), 0, 2**63 - 1):
        check_seed(fits)
        torch.Generator().manual_seed(fits)


def test_own_state_is_left_as_it_was_found() -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(Stop), own_state():
        made = torch.ones(2, 2)
        assert not (made.is_inference() or torch.is_inference_mode_enabled() or torch.is_grad_enabled())
        assert (made @ made).dtype == torch.float32
        with own_state():  # one inside another
            pass
        assert not torch.is_autocast_enabled("cpu")
        raise Stop
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_exact_products_inside_of_each_other() -> None:
    place = torch.backends.mkldnn.matmul
    before = place.fp32_precision
    place.fp32_precision = "bf16"
    try:
        with own_state():
            with own_state():
                assert place.fp32_precision == "ieee"
            assert place.fp32_precision == "ieee"
        assert place.fp32_precision == "bf16"
    finally:
        place.fp32_precision = before
