"""Where a factor per channel goes: the model with folded factors gives what it gave, else nothing is found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segquant.graph.capture.export import exported
from segquant.graph.find import read_graph
from segquant.graph.find_producers import find_producers
from segquant.graph.producers import Producer
from tests.segquant.support import tensor

N = 8


class Tiny(nn.Module):
    """A model of one line."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, part in parts.items():
            setattr(self, name, part() if callable(part) and not isinstance(part, nn.Module) else part)
        self.run = run
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor, c: Tensor) -> Any:
        return self.run(self, x, c)


def lin(out: int = N, width: int = N, bias: bool = True) -> Callable[[], nn.Linear]:
    return lambda: nn.Linear(width, out, bias=bias)


def norm(affine: bool = True) -> Callable[[], nn.LayerNorm]:
    return lambda: nn.LayerNorm(N, elementwise_affine=affine)


def ada(m: Any, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale, gate = m.ada(F.silu(c)).chunk(3, dim=-1)
    return m.norm(x) * (1 + scale[:, None]) + shift[:, None], gate[:, None]


def with_ada(run: Callable[..., Any], **parts: Any) -> Tiny:
    return Tiny(run, ada=lin(3 * N), norm=norm(False), up=lin(), **parts)


def folded_ada(m: Any, x: Tensor, c: Tensor) -> Tensor:
    y, gate = ada(m, x, c)
    return x + gate * m.up(y)


def tables(m: Any, x: Tensor, c: Tensor) -> Tensor:
    shift, scale = (m.table[None] + m.ada(c).reshape(2, 2, N)).unbind(1)
    return m.up(m.norm(x) * (scale[:, None] + 1) + shift[:, None])


def rms(m: Any, x: Tensor, c: Tensor) -> Tensor:
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.weight
    return m.q(y) * m.k(y)


def picture(m: Any, x: Tensor, c: Tensor) -> Tensor:
    y = m.norm(x.mT.reshape(2, N, 2, 2))
    return m.conv(y).sum((2, 3)) + m.proj(y.permute(0, 2, 3, 1).reshape(2, 4, N)).sum(1)


FOUND: dict[str, tuple[Callable[[], nn.Module], Mapping[str, Any]]] = {
    "adaln": (lambda: with_ada(folded_ada), {"adaln": ["up"]}),
    "norm of three": (
        lambda: Tiny(lambda m, x, c: (y := m.norm(x), [m.q(y), m.k(y)])[1], norm=norm(), q=lin(), k=lin(12)),
        {"norm": ["q", "k"]},
    ),
    "norm, one view each": (
        lambda: Tiny(
            lambda m, x, c: (y := m.norm(x), [m.q(y.reshape(8, N)), m.k(y.flatten(1, 1))])[1],
            norm=norm(), q=lin(), k=lin(),
        ),
        {"norm": ["q", "k"]},
    ),
    "rms": (lambda: Tiny(rms, weight=lambda: nn.Parameter(torch.empty(N)), q=lin(), k=lin()), {"norm": ["q", "k"]}),
    "torch's rms": (
        lambda: Tiny(lambda m, x, c: m.q(m.norm(x)), norm=lambda: nn.RMSNorm(N), q=lin()), {"norm": ["q"]}
    ),
    "group norm": (
        lambda: Tiny(picture, norm=lambda: nn.GroupNorm(2, N), conv=lambda: nn.Conv2d(N, 4, 3, padding=1), proj=lin(4)),
        {"norm": ["conv", "proj"]},
    ),
    "gate": (
        lambda: Tiny(
            lambda m, x, c: (h := m.up(x).chunk(2, -1), m.down(h[0] * F.gelu(h[1])))[1], up=lin(2 * N), down=lin()
        ),
        {"linear": ["down"]},
    ),
    "chain": (
        lambda: Tiny(
            lambda m, x, c: m.down(m.up(m.norm(x)) * F.silu(m.gate(x))),
            norm=norm(), up=lin(12), gate=lin(12), down=lin(5, 12, bias=False),
        ),
        {"norm": ["up"], "linear": ["down"]},
    ),
    "two modulations of one linear": (
        lambda: Tiny(
            lambda m, x, c: (
                p := m.ada(c)[:, None].chunk(4, -1),
                y := x + m.up(m.norm(x) * (1 + p[0]) + p[1]),
                m.down(m.norm(y) * (1 + p[2]) + p[3]),
            )[2],
            ada=lin(4 * N), norm=norm(False), up=lin(), down=lin(),
        ),
        {"adaln": ["up", "down"]},
    ),
}  # fmt: skip


def twice(m: Any, x: Tensor, c: Tensor) -> Tensor:
    y, _ = ada(m, x, c)
    return m.up(y) + m.up(x)


def in_place(m: Any, x: Tensor, c: Tensor) -> Tensor:
    y = m.norm(x)
    y += c[:, None]
    return m.up(y)


def written_later(m: Any, x: Tensor, c: Tensor) -> Tensor:
    found = m.ada(c)
    shift, scale, _ = found.chunk(3, dim=-1)
    found.mul_(2)
    return m.up(m.norm(x) * (1 + scale[:, None]) + shift[:, None])


def shared_chunk(m: Any, x: Tensor, c: Tensor) -> Tensor:
    shift, scale, gate = m.ada(c)[:, None].chunk(3, dim=-1)
    return m.up(m.norm(x) * (1 + scale) + shift) + m.norm(x + 1) * scale + gate


def overlapping(m: Any, x: Tensor, c: Tensor) -> Tensor:
    found = m.ada(c)[:, None]
    return m.up(m.norm(x) * (1 + found[..., :N]) + found[..., N : 2 * N]) + found[..., N - 1 : N]


NONE: dict[str, Callable[[], nn.Module]] = {
    "parts of a sum": lambda: Tiny(
        tables, table=lambda: nn.Parameter(torch.empty(2, N)), ada=lin(2 * N), norm=norm(False), up=lin()
    ),
    "returned too": lambda: with_ada(lambda m, x, c: (y := ada(m, x, c)[0], m.up(y))),
    "a piece returned too": lambda: with_ada(
        lambda m, x, c: (p := m.ada(c).chunk(3, -1), p[1], m.up(m.norm(x) * (1 + p[1][:, None]) + p[0][:, None]))[1:]
    ),
    "read by an activation": lambda: with_ada(lambda m, x, c: (y := ada(m, x, c)[0], m.up(y) + F.silu(y))[1]),
    "the reader called twice": lambda: with_ada(twice),
    "one chunk for two": lambda: with_ada(shared_chunk),
    "a slice across the pieces": lambda: with_ada(overlapping),
    "written later": lambda: with_ada(written_later),
    "written in place": lambda: Tiny(in_place, norm=norm(), up=lin()),
    "scale without a bias": lambda: Tiny(
        lambda m, x, c: m.up(x * (1 + m.ada(c)[:, None])), ada=lin(bias=False), up=lin()
    ),
    "no affine weights": lambda: Tiny(lambda m, x, c: m.up(m.norm(x)), norm=norm(False), up=lin()),
    "an activation between": lambda: Tiny(lambda m, x, c: m.up(F.silu(m.norm(x))), norm=norm(), up=lin()),
    "the residual": lambda: Tiny(lambda m, x, c: m.up(x + m.norm(x)), norm=norm(), up=lin()),
    "squared": lambda: Tiny(lambda m, x, c: (y := m.first(x), m.up(y * y))[1], first=lin(), up=lin()),
    "a norm used twice": lambda: Tiny(lambda m, x, c: m.up(m.norm(x)) + m.norm(x + 1), norm=norm(), up=lin()),
    "a weight used again": lambda: Tiny(lambda m, x, c: m.up(m.norm(x)) * m.up.weight[0], norm=norm(), up=lin()),
    "a norm over two axes": lambda: Tiny(lambda m, x, c: m.up(m.norm(x)), norm=lambda: nn.LayerNorm((4, N)), up=lin()),
    "channels turned": lambda: Tiny(lambda m, x, c: m.up(m.norm(x).mT.reshape(2, 4, N)), norm=norm(), up=lin()),
    "one value for all channels": lambda: Tiny(lambda m, x, c: m.up(x * m.gate(c)[:, None]), gate=lin(1), up=lin()),
}


def inputs() -> tuple[Tensor, Tensor]:
    return tensor(2, 4, N, seed=1), tensor(2, N, seed=2)


def with_factors(model: nn.Module, producers: tuple[Producer, ...]) -> nn.Module:
    """The float model with a random factor in every producer, and its inverse in the readers."""
    found = copy.deepcopy(model)
    parameters = dict(found.named_parameters())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for producer in producers:
            sizes = {rows.stop - rows.start for rows in producer.rows}
            assert len(sizes) == 1, "all parts are of one width"
            s = torch.rand(sizes.pop(), generator=generator) + 0.25
            for rows in producer.rows:
                flat = parameters[rows.parameter].view(-1, rows.width)
                part = flat[rows.start : rows.stop]
                part.copy_((part + rows.plus) / s[:, None] - rows.plus)
            for name in producer.readers:
                weight: Any = found.get_submodule(name).weight
                weight *= s.reshape(-1, *(1,) * (weight.dim() - 2))
    return found


def outputs(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    with torch.no_grad():
        found = model(*args, **kwargs)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def by_kind(producers: tuple[Producer, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for producer in producers:
        found.setdefault(producer.kind, []).extend(producer.readers)
    return found


@pytest.mark.parametrize("name", FOUND)
def test_folded_factors_leave_the_output(name: str) -> None:
    make, expected = FOUND[name]
    model = make().double()
    given = [x.double() for x in inputs()]
    producers = find_producers(read_graph(model, given))
    assert by_kind(producers) == expected
    for ours, exact in zip(outputs(with_factors(model, producers), *given), outputs(model, *given), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NONE)
def test_nothing_is_folded_where_it_would_change_the_output(name: str) -> None:
    assert by_kind(find_producers(read_graph(NONE[name](), inputs()))) == {}


def test_exported_graphs_tell_the_same() -> None:
    for name in ("adaln", "norm of three", "gate"):
        model = FOUND[name][0]()
        captured = exported(model, inputs(), {}, torch.device("cpu"))
        assert find_producers(captured) == find_producers(read_graph(model, inputs()))


def test_tied_weights_and_modules_with_two_names_stay() -> None:
    model = FOUND["norm of three"][0]()
    model.other_name = model.norm
    assert not find_producers(read_graph(model, inputs()))


def test_rows_of_an_adaln() -> None:
    (producer,) = find_producers(read_graph(with_ada(folded_ada), inputs()))
    rows = {(row.parameter, row.start, row.stop, row.width, row.plus) for row in producer.rows}
    assert rows == {
        ("ada.weight", N, 2 * N, N, 0.0), ("ada.bias", N, 2 * N, 1, 1.0),
        ("ada.weight", 0, N, N, 0.0), ("ada.bias", 0, N, 1, 0.0),
    }  # fmt: skip
