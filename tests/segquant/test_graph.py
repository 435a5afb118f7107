"""find_segments on hand-built modules, one for each pattern, and its promise to change nothing."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segquant.errors import QuantizationError
from segquant.graph import find_segments
from segquant.segments import Segments

X = torch.randn(2, 5, 16)


class Then(nn.Module):
    """linear, then a function of its output (and of the input)."""

    def __init__(self, out: int, function: Callable[..., Any], bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(16, out, bias=bias)
        self.function = function
        self.table = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x, self.linear(x))


class After(nn.Module):
    """linear, fed by a function of two other linear layers' outputs."""

    def __init__(
        self, features: int, function: Callable[..., Tensor], sizes: tuple[int, int] = (16, 16)
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, sizes[0]), nn.Linear(16, sizes[1])
        self.norm = nn.LayerNorm(features)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(features, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(self, self.a(x), self.b(x)))


OUTPUTS: dict[str, tuple[int, Callable[..., Any], tuple[int, ...] | None]] = {
    "chunk of the last axis": (6, lambda m, x, y: y.chunk(3, dim=-1), (2, 2, 2)),
    "chunk by positive axis": (6, lambda m, x, y: y.chunk(2, 2), (3, 3)),
    "chunk(2, 1) of pooled tokens": (6, lambda m, x, y: y[:, 0].chunk(2, 1), (3, 3)),
    "chunk of unequal sizes": (7, lambda m, x, y: y.chunk(3, -1), (3, 3, 1)),
    "chunk into one": (6, lambda m, x, y: y.chunk(1, -1), None),
    "chunk of tokens": (6, lambda m, x, y: y.chunk(5, 1), None),
    "split by size": (7, lambda m, x, y: y.split(3, -1), (3, 3, 1)),
    "split([4, 12])": (16, lambda m, x, y: y.split([4, 12], dim=-1), (4, 12)),
    "split with one piece unused": (16, lambda m, x, y: y.split([4, 12], dim=-1)[1], (4, 12)),
    "tensor_split": (7, lambda m, x, y: y.tensor_split([2, 3], -1), (2, 1, 4)),
    "unbind of unflattened": (6, lambda m, x, y: y.unflatten(-1, (3, 2)).unbind(-2), (2, 2, 2)),
    "select of unflattened": (6, lambda m, x, y: [y.view(2, 5, 3, 2)[:, :, i] for i in range(3)], (2, 2, 2)),
    "fused qkv": (
        48,
        lambda m, x, y: F.scaled_dot_product_attention(
            *y.reshape(2, 5, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        ),
        (16, 16, 16),
    ),
    "q, k, v inside each head": (48, lambda m, x, y: y.view(2, 5, 4, 12).chunk(3, -1), None),
    "rotary halves": (16, lambda m, x, y: y.unflatten(-1, (4, 4)).unflatten(-1, (2, 2)).unbind(-1), None),
    "slices": (6, lambda m, x, y: (y[..., :2], y[..., 2:]), (2, 4)),
    "slices with narrow": (6, lambda m, x, y: (y.narrow(-1, 0, 1), y.narrow(-1, 1, 5)), (1, 5)),
    "slices that leave a gap": (6, lambda m, x, y: (y[..., :2], y[..., 3:]), None),
    "slices that overlap": (6, lambda m, x, y: (y[..., :4], y[..., 3:]), None),
    "every second channel": (6, lambda m, x, y: (y[..., ::2], y[..., 1::2]), None),
    "glu": (6, lambda m, x, y: F.glu(y), (3, 3)),
    "table added": (24, lambda m, x, y: (y.view(2, 5, 6, 4) + m.table).chunk(6, dim=2), (4,) * 6),
    "table added, 2-D": (
        24,
        lambda m, x, y: (m.table[None] + y[:, 0].reshape(2, 6, -1)).chunk(6, dim=1),
        (4,) * 6,
    ),
    "look-through": (
        6,
        lambda m, x, y: (
            F.dropout(y.double().to(torch.float32).contiguous().clone()).unsqueeze(0).chunk(2, -1)
        ),
        (3, 3),
    ),
    "activation before": (6, lambda m, x, y: F.silu(y).chunk(2, -1), (3, 3)),
    "transposed": (6, lambda m, x, y: y.transpose(1, 2).chunk(2, 1), (3, 3)),
    "used whole too": (6, lambda m, x, y: (y.chunk(2, -1), y.sum()), (3, 3)),
    "cut twice alike": (6, lambda m, x, y: (y.chunk(2, -1), y.split(3, -1), y[..., :3], y[..., 3:]), (3, 3)),
    "cut twice unlike": (6, lambda m, x, y: (y.chunk(2, -1), y.chunk(3, -1)), None),
    "qkv and mlp, qkv cut again": (
        20,
        lambda m, x, y: (lambda qkv, mlp: (qkv.chunk(3, -1), F.gelu(mlp)))(*y.split([12, 8], -1)),
        (4, 4, 4, 8),
    ),
    "normalized before": (16, lambda m, x, y: F.layer_norm(y, (16,)).chunk(2, -1), None),
    "mixed by a matmul before": (16, lambda m, x, y: (y @ torch.ones(16, 16)).chunk(2, -1), None),
    "no cut": (6, lambda m, x, y: y * 2, None),
}


@pytest.mark.parametrize("pattern", OUTPUTS)
def test_output_cuts(pattern: str) -> None:
    out, function, expected = OUTPUTS[pattern]
    found = find_segments(Then(out, function), (X,))
    assert found == {"linear": Segments(output=expected)}


def _attention(m: nn.Module, a: Tensor, b: Tensor, heads: int = 4) -> Tensor:
    q, v = a.view(2, 5, heads, -1).transpose(1, 2), b.view(2, 5, heads, -1).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, v)


def _bmm(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Batch and heads on one dimension, as older attention code has it: [2, 5, 16] -> [2, 5, 16]."""
    q, v = (t.unflatten(-1, (4, 4)).transpose(1, 2).flatten(0, 1) for t in (a, b))
    return torch.bmm(torch.bmm(q, q.mT).softmax(-1), v).view(2, 4, 5, 4).transpose(1, 2).reshape(2, 5, 16)


def _einsum(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    q, v = a.view(2, 5, 4, 4), b.view(2, 5, 4, 4)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, q).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)


def _linear_attention(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Tokens last, a row of sums to divide by, as in Sana."""
    q, v = (t.transpose(1, 2).unflatten(1, (4, -1)) for t in (a, b))
    out = torch.matmul(torch.matmul(F.pad(v, (0, 0, 0, 1), value=1.0), q.mT), q)
    return (out[:, :, :-1] / (out[:, :, -1:] + 1e-6)).flatten(1, 2).transpose(1, 2)


def _tokens_split(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    merged = _attention(m, a, b).transpose(1, 2).reshape(2, -1, 16)
    return m.dropout(merged.split([2, 3], dim=1)[1].to(torch.float32))


def _sin_cos(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    angle = a[..., :8] * torch.exp(-math.log(10000.0) * torch.arange(8) / 8)
    embedding = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return torch.cat([embedding[..., 8:], embedding[..., :8]], dim=-1).to(torch.float32)


Case = tuple[
    int, Callable[..., Tensor], tuple[int, int], tuple[int, ...] | None, tuple[str | None, ...] | None
]
HEADS = ((4,) * 4, (None,) * 4)
INPUTS: dict[str, Case] = {
    "cat": (7, lambda m, a, b: torch.cat([a, b], -1), (3, 4), (3, 4), (None, None)),
    "concat by positive axis": (7, lambda m, a, b: torch.concat([a, b], dim=2), (3, 4), (3, 4), (None, None)),
    "hstack": (7, lambda m, a, b: torch.hstack([a[:, 0], b[:, 0]]), (3, 4), (3, 4), (None, None)),
    "cat of one": (4, lambda m, a, b: torch.cat([b], -1), (3, 4), None, None),
    "cat of tokens": (4, lambda m, a, b: torch.cat([a, b], 1), (4, 4), None, None),
    "cat of cat": (
        13,
        lambda m, a, b: torch.cat([torch.cat([a, b], -1), F.silu(b), m.dropout(a)[..., :2]], -1),
        (3, 4),
        (3, 4, 4, 2),
        (None, None, "silu", None),
    ),
    "cat then norm": (7, lambda m, a, b: m.norm(torch.cat([a, b], -1)), (3, 4), (3, 4), (None, None)),
    "cat then silu": (7, lambda m, a, b: F.silu(torch.cat([a, b], -1)), (3, 4), (3, 4), ("silu", "silu")),
    "cat with an activation, then norm": (
        7,
        lambda m, a, b: m.norm(torch.cat([F.gelu(a), b], -1)),
        (3, 4),
        (3, 4),
        (None, None),
    ),
    "cat of tokens of cats": (
        7,
        lambda m, a, b: torch.cat([torch.cat([a, b], -1), torch.cat([F.silu(a), b], -1)], 1),
        (3, 4),
        (3, 4),
        (None, None),
    ),
    "cat in the middle, moved": (
        7,
        lambda m, a, b: torch.cat([a.transpose(1, 2), b.transpose(1, 2)], 1).transpose(1, 2).contiguous(),
        (3, 4),
        (3, 4),
        (None, None),
    ),
    "cat plus a residual": (8, lambda m, a, b: torch.cat([a, a], -1) + b, (4, 8), None, None),
    "stack, flattened": (
        8,
        lambda m, a, b: torch.stack([a, b], -2).flatten(-2),
        (4, 4),
        (4, 4),
        (None, None),
    ),
    "stack, interleaved": (8, lambda m, a, b: torch.stack([a, b], -1).flatten(-2), (4, 4), None, None),
    "sin and cos": (16, _sin_cos, (16, 16), None, None),
    "a feature and sin, cos": (
        20,
        lambda m, a, b: torch.cat([b, _sin_cos(m, a, b)], -1),
        (16, 4),
        (4, 16),
        (None, None),
    ),
    "constants": (
        4,
        lambda m, a, b: torch.cat([torch.zeros(2, 2), torch.ones(2, 2)], -1),
        (4, 4),
        None,
        None,
    ),
    "heads, transpose and reshape": (
        16,
        lambda m, a, b: _attention(m, a, b).transpose(1, 2).reshape(2, -1, 16).to(torch.float32),
        (16, 16),
        *HEADS,
    ),
    "heads, permute and flatten": (
        16,
        lambda m, a, b: _attention(m, a, b).permute(0, 2, 1, 3).flatten(2, 3),
        (16, 16),
        *HEADS,
    ),
    "heads, view": (
        16,
        lambda m, a, b: _attention(m, a, b).transpose(1, 2).contiguous().view(2, 5, 16),
        (16, 16),
        *HEADS,
    ),
    "one head": (16, lambda m, a, b: _attention(m, a, b, 1).transpose(1, 2).flatten(2), (16, 16), None, None),
    "heads, bmm": (16, _bmm, (16, 16), *HEADS),
    "heads, einsum": (16, _einsum, (16, 16), *HEADS),
    "heads, linear attention": (16, _linear_attention, (16, 16), *HEADS),
    "heads, tokens split": (16, _tokens_split, (16, 16), *HEADS),
    "heads, gated": (
        16,
        lambda m, a, b: _attention(m, a, b).transpose(1, 2).flatten(2) * torch.sigmoid(b),
        (16, 16),
        *HEADS,
    ),
    "head and token axes confused": (
        16,
        lambda m, a, b: _attention(m, a, b).reshape(2, 5, 16),
        (16, 16),
        None,
        None,
    ),
    "patches of an image": (
        16,
        lambda m, a, b: a.view(2, 5, 4, 4).transpose(2, 3).flatten(2),
        (16, 4),
        None,
        None,
    ),
    "concat of heads and gelu": (
        24,
        lambda m, a, b: torch.cat([_attention(m, a, a).transpose(1, 2).flatten(2), F.gelu(b)], 2),
        (16, 8),
        (16, 8),
        (None, "gelu"),
    ),
    "no cut": (16, lambda m, a, b: a + b, (16, 16), None, None),
}


@pytest.mark.parametrize("pattern", INPUTS)
def test_input_cuts(pattern: str) -> None:
    features, function, sizes, expected, activations = INPUTS[pattern]
    found = find_segments(After(features, function, sizes), (X,))["linear"]
    assert (found.input, found.input_activations) == (expected, activations)
    assert found.output is None


ACTIVATIONS: dict[str, tuple[int, Callable[..., Tensor], str | None]] = {
    "silu": (16, lambda m, a, b: F.silu(a), "silu"),
    "gelu": (16, lambda m, a, b: F.gelu(a), "gelu"),
    "gelu tanh": (16, lambda m, a, b: F.gelu(a, approximate="tanh"), "gelu"),
    "through look-through": (
        16,
        lambda m, a, b: m.dropout(F.silu(a).double().to(torch.float32))[:, :2],
        "silu",
    ),
    "geglu": (8, lambda m, a, b: (lambda h, g: h * F.gelu(g))(*a.chunk(2, -1)), "geglu"),
    "swiglu": (8, lambda m, a, b: (lambda h, g: F.silu(g) * h)(*a.chunk(2, -1)), "swiglu"),
    "swiglu of two layers": (16, lambda m, a, b: F.silu(a) * b, "swiglu"),
    "sigmoid approximation of gelu": (16, lambda m, a, b: a * torch.sigmoid(1.702 * a), "gelu"),
    "silu written out": (16, lambda m, a, b: torch.sigmoid(a) * a, "silu"),
    "gated by a sigmoid": (16, lambda m, a, b: a * torch.sigmoid(b), None),
    "scaled": (16, lambda m, a, b: F.silu(a) / 2, "silu"),
    "negated": (16, lambda m, a, b: F.silu(a) * -1.0, None),
    "one gate for all channels": (16, lambda m, a, b: a * F.silu(b[..., :1]), None),
    "normalized after": (16, lambda m, a, b: m.norm(F.silu(a)), None),
    "residual": (16, lambda m, a, b: a + F.silu(b), None),
    "relu": (16, lambda m, a, b: F.relu(a), None),
    "in place": (16, lambda m, a, b: F.silu(a, inplace=True), "silu"),
    "tokens joined, alike": (16, lambda m, a, b: torch.cat([F.silu(a), F.silu(b)], 1), "silu"),
    "tokens joined, unlike": (16, lambda m, a, b: torch.cat([F.silu(a), b], 1), None),
}


@pytest.mark.parametrize("pattern", ACTIVATIONS)
def test_activations(pattern: str) -> None:
    features, function, expected = ACTIVATIONS[pattern]
    found = find_segments(After(features, function), (X,))["linear"]
    assert found == Segments(activation=expected)


class _Pieces(nn.Module):
    """A linear layer computed piece by piece, as its segments say."""

    def __init__(self, linear: nn.Linear, segments: Segments) -> None:
        super().__init__()
        self.linear, self.segments = linear, segments

    def forward(self, x: Tensor) -> Tensor:
        rows = self.segments.output or (self.linear.out_features,)
        columns = self.segments.input or (self.linear.in_features,)
        parts = []
        for weight in self.linear.weight.split(rows, dim=0):
            pairs = zip(x.split(columns, dim=-1), weight.split(columns, dim=1), strict=True)
            parts.append(sum(F.linear(part, block) for part, block in pairs))
        result = torch.cat(parts, dim=-1)
        return result if self.linear.bias is None else result + self.linear.bias


@pytest.mark.parametrize("pattern", [k for k, case in INPUTS.items() if case[3]])
def test_computing_the_pieces_gives_the_layer(pattern: str) -> None:
    features, function, sizes, *_ = INPUTS[pattern]
    model = After(features, function, sizes).eval()
    segments = find_segments(model, (X,))
    with torch.no_grad():
        expected = model(X)
        model.linear = _Pieces(model.linear, segments["linear"])
        torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", [k for k, case in INPUTS.items() if case[3] == (4, 4, 4, 4)])
def test_each_piece_is_one_head(pattern: str) -> None:
    """Brute force: values of head i, changed, reach the channels of piece i and no others."""
    features, function, sizes, cut, _ = INPUTS[pattern]
    torch.manual_seed(0)
    model = After(features, function, sizes).eval()
    seen: list[Tensor] = []
    model.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    scale = torch.ones(16)
    model.b.register_forward_hook(lambda module, args, output: output * scale)
    with torch.no_grad():
        model(X)
        for head in range(4):
            scale[:] = 1.0
            scale[4 * head : 4 * head + 4] = 1.5
            model(X)
    for head, changed in enumerate(seen[1:]):
        touched = (changed - seen[0]).abs().amax((0, 1)).nonzero().flatten().tolist()
        assert touched == list(range(4 * head, 4 * head + 4))
    assert cut is not None and len(seen) == 5


@pytest.mark.parametrize("pattern", [k for k, case in OUTPUTS.items() if case[2]])
def test_each_piece_is_one_output(pattern: str) -> None:
    """Brute force by gradients: each tensor that the model returns depends on the channels of one piece."""
    out, function, sizes = OUTPUTS[pattern]
    if pattern in ("fused qkv", "glu", "used whole too"):
        pytest.skip("returns no pieces")
    torch.manual_seed(0)
    model = Then(out, function).eval()
    edges = [sum((sizes or ())[:i]) for i in range(len(sizes or ()) + 1)]
    y = model.linear(X).detach().requires_grad_()
    flat: list[Tensor] = []
    torch.utils._pytree.tree_map(flat.append, function(model, X, y))
    owners = set()
    for piece in flat:
        (gradient,) = torch.autograd.grad(piece.sum(), y, retain_graph=True)
        channels = gradient.abs().amax((0, 1)).nonzero().flatten().tolist()
        owners.add((min(channels), max(channels) + 1))
    assert owners <= set(zip(edges, edges[1:], strict=False))


class Everything(nn.Module):
    """Kwargs only, a dataclass for output, a layer called twice, tied weights, a layer never called."""

    @dataclass
    class Output:
        sample: Tensor
        extra: dict[str, list[Tensor]]

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(16, 16)
        self.unlike = nn.Linear(16, 16)
        self.first, self.tied = nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied.weight = self.first.weight
        self.never = nn.Linear(4, 4)
        self.shared = nn.ModuleList([self.never])
        self.norm = nn.BatchNorm1d(16)
        self.offset = torch.ones(16)

    def forward(
        self, *, sample: Tensor, scale: float = 1.0, extra: dict[str, Tensor] | None = None
    ) -> Output:
        y = F.dropout(sample, 0.5, self.training) * scale
        a, b = self.twice(F.silu(y)).chunk(2, -1)
        c, d = self.twice(F.silu(torch.cat([a, b], -1) + self.offset)).split(8, -1)
        e, f = self.unlike(torch.cat([c, d], -1)).split([4, 12], -1)
        g = self.unlike(torch.cat([e, f], -1))
        h = self.norm(self.first(F.gelu(g)).mean(1))
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            i, j = self.tied(h).chunk(2, -1)
        noise = torch.rand_like(i)
        return self.Output(i + noise, {"rest": [j, extra["table"]] if extra else [j]})


EVERYTHING = {
    "twice": Segments(output=(8, 8), activation="silu"),
    "unlike": Segments(),
    "first": Segments(activation="gelu"),
    "tied": Segments(output=(8, 8)),
    "never": Segments(),
    "shared.0": Segments(),
}


def test_calls_names_and_containers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="segquant"):
        found = find_segments(Everything(), kwargs={"sample": X, "extra": {"table": torch.ones(3)}})
    assert found == EVERYTHING
    assert list(found) == list(EVERYTHING)
    assert "unlike: its 2 calls disagree on output" in caplog.text
    assert "unlike: its 2 calls disagree on input" in caplog.text
    assert "twice: its 2 calls disagree on input" in caplog.text
    assert "twice: its 2 calls disagree on output" not in caplog.text
    assert "first" not in caplog.text


@pytest.mark.parametrize(
    "where", ["meta", "fake", "meta weights", "meta arguments", "bfloat16", "parts on meta"]
)
def test_no_weights_needed(where: str) -> None:
    model, sample = Everything(), X
    if where in ("meta", "meta weights"):
        model = model.to("meta")
        model.offset = model.offset.to("meta")
    if where in ("meta", "meta arguments"):
        sample = sample.to("meta")
    if where == "parts on meta":
        model.first.to("meta")
    if where == "bfloat16":
        model, sample = model.bfloat16(), sample.bfloat16()
    if where == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True):
            model, sample = Everything(), torch.randn(2, 5, 16)
    assert find_segments(model, kwargs={"sample": sample}) == EVERYTHING


@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes(training: bool) -> None:
    model = Everything().train(training)
    model.never.eval()
    calls: list[str] = []
    model.first.register_forward_hook(lambda *args: calls.append("forward"))
    model.register_forward_pre_hook(lambda *args, **kwargs: calls.append("pre"), with_kwargs=True)
    before = copy.deepcopy(model.state_dict())
    objects = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    modes = {name: module.training for name, module in model.named_modules()}
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    random_state, sample = torch.get_rng_state(), X.clone()

    find_segments(model, kwargs={"sample": sample})

    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(sample, X)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: id(v) for name, v in [*model.named_parameters(), *model.named_buffers()]} == objects
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == grads
    assert calls == []
    assert len(model.first._forward_hooks) == len(model._forward_pre_hooks) == 1
    assert torch.is_grad_enabled()


def test_weights_made_from_parameters() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), nn.SiLU(), nn.Linear(16, 4)
    )
    assert find_segments(model, (X,)) == {"0": Segments(), "2": Segments(activation="silu")}
    gated = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), nn.GLU())
    assert find_segments(gated, (X,)) == {"0": Segments(output=(8, 8))}


def test_gradient_checkpointing_is_looked_into() -> None:
    class Checkpointed(Then):
        def forward(self, x: Tensor) -> Any:
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    found = find_segments(Checkpointed(6, lambda m, x, y: y.chunk(2, -1)), (X,))
    assert found == {"linear": Segments(output=(3, 3))}


def test_pieces_of_a_layer_called_twice_keep_the_activations_that_agree() -> None:
    class Twice(After):
        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            once = self.linear(torch.cat([F.gelu(a), F.silu(b)], -1))
            return once + self.linear(torch.cat([F.gelu(b), a], -1))

    assert find_segments(Twice(8, lambda: X, (4, 4)), (X,))["linear"] == Segments(
        input=(4, 4), input_activations=("gelu", None)
    )


def test_no_linear_layers() -> None:
    assert find_segments(nn.SiLU(), (X,)) == {}


def test_export_failure_names_the_model_and_the_cause() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) if x.sum() > 0 else x

    with pytest.raises(
        QuantizationError, match=r"graph of Branching called with \(argument 0\): \w+: "
    ) as info:
        find_segments(Branching(), (X,))
    assert "\n" not in str(info.value)
    with pytest.raises(QuantizationError, match="graph of Everything called with .no arguments.*sample"):
        find_segments(Everything())
    with pytest.raises(QuantizationError, match="wants `args` as a tuple"):
        find_segments(Everything(), X)  # type: ignore[arg-type]


def test_output_without_tensors() -> None:
    class Hiding(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return iter([super().forward(x)])

    with pytest.raises(QuantizationError, match="without tensors"):
        find_segments(Hiding(16, 16), (X,))
