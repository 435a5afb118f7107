from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from segquant import Segments, find_segments
from segquant_bench.pipelines.stages.polarity import activation_pieces, polarity
from segquant_bench.pipelines.stages.shared.segments import FILE, graph_record, read_segments, write_segments


class Block(nn.Module):
    """One linear fed by GELU, one by a concat of plain and SiLU channels, one by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.fed, self.mixed = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fed(functional.gelu(self.plain(x)))
        return self.mixed(torch.cat([x, functional.silu(hidden)], -1))


def test_shares_are_those_counted_by_hand() -> None:
    torch.manual_seed(0)
    model, batches = Block(), [{"x": torch.randn(5, 3, 4)} for _ in range(3)]
    segments = find_segments(model, (), batches[0])
    assert segments["mixed"].input_activations == (None, "silu")
    found = polarity(model, segments, batches)
    assert found.keys() == {"fed", "mixed"}
    x = torch.cat([batch["x"] for batch in batches]).reshape(-1, 4)
    gelu = functional.gelu(model.plain(x))
    for name, values, activation in (("fed", gelu, "gelu"), ("mixed", functional.silu(model.fed(gelu)), "silu")):
        (record,) = found[name]
        assert (record["activation"], record["channels"], record["rows"]) == (activation, values.shape[1], 45)
        assert record["negative"] == pytest.approx((values < 0).double().mean())
        mostly = ((values < 0).sum(0) > 22).double().mean()  # 45 rows: more than half are 23
        assert record["mostly_negative"] == pytest.approx(mostly)
        assert record["mostly_positive"] == pytest.approx(((values > 0).sum(0) > 22).double().mean())
    assert not model.fed._forward_pre_hooks


def test_half_and_half_and_zero_channels_are_neither() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 1))
    model.forward = lambda x: model[1](x)  # type: ignore[method-assign]
    x = torch.tensor([[-1.0, -1.0, 0.0, 1.0], [1.0, -1.0, 0.0, 1.0]])
    (record,) = polarity(model, {"1": Segments(activation="silu")}, [{"x": x}])["1"]
    assert (record["mostly_negative"], record["mostly_positive"]) == (0.25, 0.25)
    assert (record["negative"], record["positive"]) == (3 / 8, 3 / 8)


def test_a_layer_that_is_not_called_is_left_out() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    plan = dict.fromkeys(model, Segments(activation="gelu"))
    assert polarity(model, plan, [{"x": torch.ones(1, 2)}]).keys() == {"used"}


def test_pieces_and_record(tmp_path: Path) -> None:
    assert list(activation_pieces(Segments(activation="silu"), 8)) == [("silu", slice(0, 8))]
    mixed = Segments(input=(2, 3, 4), input_activations=(None, "gelu", "silu"))
    assert list(activation_pieces(mixed, 9)) == [("gelu", slice(2, 5)), ("silu", slice(5, 9))]
    assert list(activation_pieces(Segments(), 9)) == []
    segments = {"a": Segments(), "b": Segments(output=(1, 2)), "c": mixed}
    write_segments(tmp_path / FILE, segments)
    assert read_segments(tmp_path / FILE) == segments
    record = graph_record(tmp_path)
    assert record.keys() == {"b", "c"}
    assert record["b"] == {"output": [1, 2], "input": None, "activation": None, "input_activations": None}
