"""What find_segments says of models and example arguments that it cannot work with."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segquant.errors import QuantizationError
from segquant.graph.find import find_segments

X, TEXT = torch.randn(2, 5, 16), torch.randn(2, 7, 24)


class Denoiser(nn.Module):
    """Two inputs of different width, a submodule that joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.context = nn.Linear(16, 32), nn.Linear(24, 32)
        self.block = nn.ModuleDict({"mix": nn.Linear(32, 32)})

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, scale: float = 1.0) -> Tensor:
        batch, tokens, _ = hidden_states.shape
        joined = torch.cat([self.embed(hidden_states), self.context(encoder_hidden_states)], 1)
        return self.block["mix"](F.gelu(joined) * scale)[:, :tokens]


def _message(model: nn.Module, *args: object, **kwargs: object) -> str:
    with pytest.raises(QuantizationError) as info:
        find_segments(model, args, kwargs)
    text = str(info.value)
    assert "\n" not in text
    assert type(model).__name__ in text
    return text


def test_the_example_is_right() -> None:
    assert set(find_segments(Denoiser(), (X, TEXT))) == {"embed", "context", "block.mix"}


def test_no_layers() -> None:
    assert "no nn.Linear and no nn.Conv2d among its 2 modules" in _message(nn.Sequential(nn.SiLU()), X)


def test_arguments_that_the_signature_does_not_have() -> None:
    text = _message(Denoiser(), X)
    assert "missing a required argument: 'encoder_hidden_states'" in text
    assert "needs (hidden_states, encoder_hidden_states)" in text
    assert "unexpected keyword argument 'noise'" in _message(Denoiser(), X, TEXT, noise=X)
    with pytest.raises(QuantizationError, match="wants `args` as a tuple"):
        find_segments(Denoiser(), X)  # type: ignore[arg-type]


@pytest.mark.parametrize("meta", [False, True])
def test_a_wrong_width_names_the_argument_and_the_layer(meta: bool) -> None:
    device = "meta" if meta else "cpu"
    wide = torch.empty(2, 7, 25, device=device)
    text = _message(Denoiser().to(device), X.to(device), encoder_hidden_states=wide)
    assert "in context," in text
    assert "Pass another encoder_hidden_states [2, 7, 25]" in text
    assert "another hidden_states" not in text
    text = _message(Denoiser().to(device), torch.empty(2, 5, 17, device=device), TEXT.to(device))
    assert "in embed," in text
    assert "Pass another argument 0 [2, 5, 17]" in text


def test_a_wrong_rank_that_no_operator_sees_names_the_argument() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.body, self.other = nn.Conv2d(4, 8, 1), Unpack(), nn.Linear(24, 8)

        def forward(self, sample: Tensor, text: Tensor) -> Tensor:
            return self.body(self.patch(sample)) + self.other(text).sum()

    class Unpack(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            return x.reshape(batch, channels, height * width)

    text = _message(Deep(), sample=torch.randn(4, 8, 8), text=TEXT)
    assert "ValueError in body: not enough values to unpack" in text
    assert "Pass another sample [4, 8, 8]" in text


def test_two_arguments_that_do_not_fit_each_other() -> None:
    text = _message(Denoiser(), hidden_states=X, encoder_hidden_states=TEXT[:1])
    assert "encoder_hidden_states [1, 7, 24] or hidden_states [2, 5, 16]" in text


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        if timestep.max() > 500:
            x = F.silu(x)
        return self.linear(x)


def test_control_flow_on_a_value_that_nobody_has() -> None:
    x, timestep = X.to("meta"), torch.empty(2, device="meta")
    text = _message(Branching(), x, timestep=timestep)
    assert "`if timestep.max() > 500:` (test_bad_input.py:" in text
    assert "argument 0, timestep have none" in text


def test_a_wrong_width_behind_a_branch_on_values() -> None:
    text = _message(Branching(), torch.randn(2, 5, 17), timestep=torch.tensor([900.0]))
    assert "in linear," in text
    assert "Pass another argument 0 [2, 5, 17]" in text


def test_any_other_exception_of_a_forward_is_its_cause() -> None:
    class Refusing(nn.Linear):
        def forward(self, x: Tensor, mode: str) -> Tensor:
            raise KeyError(f"no mode {mode}")

    text = _message(Refusing(16, 16), X, mode="left")
    assert "KeyError: 'no mode left'" in text
    with pytest.raises(QuantizationError) as info:
        find_segments(Refusing(16, 16), (X, "left"))
    assert isinstance(info.value.__cause__, KeyError)


SCRIPT = """
import torch
from torch import nn
from segquant import find_segments
try:
    find_segments(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8)), (torch.zeros(2, 17),))
except Exception as error:
    print(error)
"""


def test_nothing_but_the_sentence_is_printed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1 and "Pass another argument 0 [2, 17]" in done.stdout


def test_torch_logs_as_before_afterwards() -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    _message(Denoiser(), torch.randn(2, 5, 17), TEXT)
    find_segments(Denoiser(), (X, TEXT))
    assert log.level == before


@pytest.mark.parametrize("attribute", ["lock", "generator", "list of locks"])
def test_a_model_that_cannot_be_copied_names_the_attribute(attribute: str) -> None:
    values = {"lock": threading.Lock(), "generator": iter(i for i in range(3)), "list of locks": [threading.Lock()]}
    model = Denoiser()
    model.block["mix"].odd = values[attribute]
    text = _message(model, X, TEXT)
    assert "its attribute block.mix.odd is a " in text and "cannot pickle" in text


def test_a_lazy_layer_wants_to_be_called_first() -> None:
    model = nn.Sequential(nn.LazyLinear(8))
    assert "0.weight of Sequential has no shape yet" in _message(model, X)
    model(X)
    assert set(find_segments(model, (X,))) == {"0"}
