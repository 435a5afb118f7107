"""Recording takes what torch.export does not: values in control flow, odd arguments, experts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from segquant.errors import QuantizationError
from segquant.graph.capture.export import exported
from segquant.graph.capture.record import recorded
from segquant.graph.find import find_segments, segments_of
from segquant.graph.segments import Segments

X = torch.randn(2, 5, 16)
CPU = torch.device("cpu")


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("segquant") and r.levelno >= logging.WARNING]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.never = nn.Linear(16, 12), nn.Linear(16, 16)
        self.register_buffer("limit", torch.tensor(500.0))

    def forward(self, x: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        x = F.silu(x) if timestep.max() > self.limit else self.never(x)
        return self.linear(x).chunk(3, -1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_branch_on_an_argument_is_taken_as_its_value_says(device: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Branching().to(device)
    model.limit = torch.tensor(500.0)
    with caplog.at_level(logging.INFO, logger="segquant"):
        found = find_segments(model, (X, torch.tensor([10.0, 900.0])))
    assert found == {"linear": Segments(output=(4, 4, 4), activation="silu"), "never": Segments()}
    assert "exported instead" not in caplog.text
    with pytest.raises(Exception):  # noqa: B017 - whatever torch.export raises
        exported(Branching(), (X, torch.tensor([10.0, 900.0])), {}, CPU)
    warnings = _warnings(caplog)
    assert len(warnings) == 1
    assert "holds only where `x = F.silu(x) if timestep.max() > self.limit" in warnings[0]
    assert "(test_record.py:" in warnings[0] and warnings[0].endswith("read True")
    assert "never called: never" in caplog.text

    other = find_segments(model, (X, torch.tensor([10.0, 90.0])))
    assert other == {"linear": Segments(output=(4, 4, 4)), "never": Segments()}


def test_a_branch_on_equality_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Equal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 12)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return self.linear(F.silu(x) if torch.equal(x, y) else x).chunk(3, -1)

    for other, activation in ((X.clone(), "silu"), (X + 1, None)):
        caplog.clear()
        found = find_segments(Equal(), (X, other))
        assert found == {"linear": Segments(output=(4, 4, 4), activation=activation)}
        (warning,) = _warnings(caplog)
        assert "torch.equal(x, y)" in warning and warning.endswith(f"read {activation is not None}")


def test_lengths_read_as_a_list(caplog: pytest.LogCaptureFixture) -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 8)

        def forward(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
            parts = x.flatten(0, 1).split(lengths.tolist())
            return [piece for part in parts for piece in self.linear(F.gelu(part)).split([2, 6], -1)]

    with caplog.at_level(logging.WARNING, logger="segquant"):
        captured = recorded(Ragged(), (), {"x": X, "lengths": torch.tensor([3, 7])}, CPU)
    assert segments_of(captured) == {"linear": Segments(output=(2, 6), activation="gelu")}
    assert len(captured.calls["linear"]) == 2
    assert [text.rpartition(" read ")[2] for text in _warnings(caplog)] == ["[3, 7]"]


class Experts(nn.Module):
    """Tokens sent to experts by what a linear layer says of them; an expert without tokens is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        chosen = self.router(flat).argmax(-1)
        result = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().flatten()
            if len(rows) == 0:
                continue
            result.index_add_(0, rows, expert(flat[rows]))
        return result.view_as(x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_experts_need_the_weights_values(device: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="segquant"):
        found = find_segments(Experts().to(device), (torch.randn(2, 50, 16),))
    assert found == {"router": Segments()} | {
        f"experts.{i}.{j}": Segments(activation="gelu" if j else None) for i in (0, 1) for j in (0, 2)
    }
    assert "its control flow depends on weights" in caplog.text
    assert ("drawn at random" in caplog.text) is (device == "meta")


def test_a_mask_with_values_selects_rows_of_what_has_none(caplog: pytest.LogCaptureFixture) -> None:
    """Rows of a layer's output picked and written by a mask given as an argument: no weight has to be drawn for it."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.out = nn.Linear(16, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            y = self.linear(x)
            y[~mask] = 0.0
            return self.out(F.gelu(y[mask])).chunk(2, -1)

    mask = torch.tensor([[True, False, True, True, False]] * 2)
    with caplog.at_level(logging.INFO, logger="segquant"):
        captured = recorded(Masked().to("meta"), (X, mask), {}, CPU)
    assert captured.calls["out"][0].meta["val"].shape == (6, 8)
    assert segments_of(captured)["out"] == Segments(output=(4, 4), activation="gelu")
    assert "drawn at random" not in caplog.text
    assert "`return self.out(F.gelu(y[mask])).chunk(2, -1)`" in caplog.text


def test_sizes_that_depend_on_values_keep_the_cuts() -> None:
    """Heads of an attention over as many words as a mask counts, exported: the length is no number, the cut is."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 8)

        def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
            text = text[:, : mask.sum().item()]
            both = torch.cat([x, text], 1)
            q, k, v = self.qkv(both).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind()
            merged = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.out(F.silu(merged[:, : x.shape[1]])), self.out(F.silu(merged[:, x.shape[1] :]))

    given = (X, torch.randn(2, 7, 16), torch.tensor([True] * 5 + [False] * 2))
    expected = {
        "qkv": Segments(output=(16, 16, 16)),
        "out": Segments(input=(4,) * 4, input_activations=(None,) * 4, activation="silu"),
    }
    assert segments_of(exported(Words(), given, {}, CPU)) == expected
    assert segments_of(recorded(Words(), given, {}, CPU)) == expected


class _Cache:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []


@pytest.mark.parametrize("capture", [exported, recorded])
def test_an_argument_that_forward_writes_to_is_not_touched(capture: Any) -> None:
    class Caching(nn.Linear):
        def forward(self, x: Tensor, cache: Any) -> Tensor:
            (cache.seen if isinstance(cache, _Cache) else cache).append(x)
            return super().forward(x.mul_(2.0))

    x, cache = X.clone(), _Cache() if capture is recorded else []
    captured = capture(Caching(16, 4), (x, cache), {}, CPU)
    assert len(captured.calls[""]) == 1
    assert torch.equal(x, X)
    assert not (cache.seen if isinstance(cache, _Cache) else cache)


def test_weights_that_would_not_fit_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segquant.graph.capture.record.free_bytes", lambda device: 1000)
    with pytest.raises(QuantizationError, match="drawing them at random takes 0.0 GB and 0.0 GB are free"):
        find_segments(Experts().to("meta"), (X,))


def test_values_written_into_a_real_tensor_do_not_pass_for_real() -> None:
    """A real tensor that a layer's output is copied into: what is read of it is the layer's, not its zeros."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(2, 5, 16)
            out[:, :3] = self.linear(x)[:, :3]
            return self.linear(F.silu(x)) if out.abs().sum() > 0 else out

    model = Written()
    nn.init.eye_(model.linear.weight)
    captured = recorded(model, (X,), {}, CPU)
    assert len(captured.calls["linear"]) == 2


@dataclass
class _Packed:
    tokens: Tensor
    parts: list[Tensor] = field(default_factory=list)


class _Mode:
    gelu = True


class Odd(nn.Module):
    """Arguments that are no pytree, an output that is an iterator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(32, 4)

    def forward(self, packed: _Packed, mode: _Mode, callback: Any = None) -> Iterator[Tensor]:
        y = self.first(packed.tokens)
        y = F.gelu(y) if mode.gelu else y
        return iter([self.second(torch.cat([y, *packed.parts], -1))])


def test_arguments_and_outputs_that_are_no_tensors(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="segquant"):
        found = find_segments(Odd(), (_Packed(X, [X]), _Mode()), {"callback": print})
    expected = Segments(input=(16, 16), input_activations=("gelu", None))
    assert found == {"first": Segments(), "second": expected}
    assert "exported instead" not in caplog.text
    with pytest.raises(Exception):  # noqa: B017 - whatever torch.export raises
        exported(Odd(), (_Packed(X, [X]), _Mode()), {"callback": print}, CPU)
    assert not _warnings(caplog)


class Plain(nn.Module):
    """In-place work, modes, views and a layer without bias: the same to both captures."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.depth = nn.Conv2d(4, 16, 2, stride=2), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 16)
        self.norm, self.drop = nn.LayerNorm(16), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(F.silu(self.patch(x), inplace=True)).flatten(2).transpose(1, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).to(x)
        y *= 0.5
        return self.drop(self.out(y).mul_(2.0))


def test_both_captures_give_the_same_plan() -> None:
    image = torch.randn(2, 4, 8, 8)
    export = segments_of(exported(Plain(), (image,), {}, CPU))
    record = segments_of(recorded(Plain(), (image,), {}, CPU))
    assert export == record
    assert record["qkv"].output == (16, 16, 16)
    assert record["out"].input == (4, 4, 4, 4)
    assert record["depth"].activation == "silu"


@pytest.mark.parametrize("capture", [exported, recorded])
def test_heads_behind_flex_attention(capture: Any) -> None:
    """An operator that takes a function, and compiles itself when it is called."""

    class Flex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind()
            return self.out(flex_attention(q, k, v).transpose(1, 2).flatten(2))

    expected = {"qkv": Segments(output=(16, 16, 16)), "out": Segments(input=(8, 8))}
    assert segments_of(capture(Flex(), (torch.randn(2, 128, 16),), {}, CPU)) == expected


def test_recording_changes_nothing() -> None:
    model, timestep = Branching().train(), torch.tensor([10.0, 900.0])
    calls: list[str] = []
    model.linear.register_forward_hook(lambda *args: calls.append("forward"))
    before, sample, experts = copy.deepcopy(model.state_dict()), X.clone(), Experts()
    random_state = torch.get_rng_state()
    objects = {name: id(p) for name, p in model.named_parameters()}
    for module, given in ((model, (sample, timestep)), (experts, (sample,))):
        find_segments(module, given)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(sample, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: id(p) for name, p in model.named_parameters()} == objects
    assert all(p.requires_grad for p in model.parameters())
    assert model.training and calls == [] and torch.is_grad_enabled()
