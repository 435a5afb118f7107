"""Products of queries and keys in 8-bit codes, in files for OpenVINO."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.overrides import TorchFunctionMode

pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
pytest.importorskip("diffusers")

import onnx

from segquant import QuantizationError, export_onnx, presets, quantize_
from segquant.deploy.onnx.attention import Call
from segquant.deploy.onnx.manifest import KEY, Manifest
from segquant.deploy.run import load_exported
from segquant.deploy.run import openvino as openvino_engine
from tests.segquant.deploy.test_export import call, error, sd3
from tests.segquant.support import Block, block_batches

HEADS, WIDTH = 4, 16
CODED = {"profile": "openvino", "attention": "int8"}


class Bare(nn.Module):
    """Attention alone, of tokens [batch, tokens, heads × width]."""

    def __init__(self, key_heads: int = HEADS, rank: int = 4, **settings: Any) -> None:
        super().__init__()
        self.key_heads, self.rank, self.settings = key_heads, rank, settings

    def heads(self, x: Tensor, name: str) -> Tensor:
        count = HEADS if name == "query" else self.key_heads
        return x if self.rank == 3 else x.reshape(*x.shape[:2], count, WIDTH).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = map(self.heads, (query, key, value), ("query", "key", "value"))
        return nnf.scaled_dot_product_attention(q, k, v, mask, **self.settings)


def tokens(model: Bare, seed: int, size: float = 1.0, queries: int = 9, keys: int = 9) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    loud = torch.tensor([1.0, 5.0, 0.2, 1.5]).repeat_interleave(WIDTH)  # heads of unlike ranges
    q = torch.randn(2, queries, HEADS * WIDTH, generator=g) * loud * size
    k, v = (torch.randn(2, keys, model.key_heads * WIDTH, generator=g) for _ in range(2))
    return {"query": q, "key": k * size, "value": v}


def reference(model: Bare, given: dict[str, Tensor], calls: list[dict[str, Tensor]]) -> Tensor:
    """In float64, by the largest magnitudes over the calls."""

    def coded(name: str) -> Tensor:
        axes = [0, 1, 2] if model.rank == 3 else [0, 2, 3]
        seen = [model.heads(each[name], name).abs().amax(axes, keepdim=True) for each in calls]
        step = torch.stack(seen).amax(0) / 127
        x = (model.heads(given[name], name) / step).round().clamp(-128, 127).double() * step
        return x.repeat_interleave(HEADS // model.key_heads, 1) if name == "key" and model.rank == 4 else x

    q, k, v = coded("query"), coded("key"), model.heads(given["value"], "value").double()
    if model.rank == 4:
        v = v.repeat_interleave(HEADS // model.key_heads, 1)
    scores = q @ k.mT * (model.settings.get("scale") or q.shape[-1] ** -0.5)
    mask = given.get("mask")
    if model.settings.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    return (scores.softmax(-1) @ v).nan_to_num()  # 0 where no key is allowed, as torch has it


def padded(queries: int, keys: int) -> Tensor:
    """The last tokens are neither queries nor keys."""
    kept = [torch.arange(count) < count - 3 for count in (queries, keys)]
    return (kept[0][:, None] & kept[1]).expand(2, 1, queries, keys).contiguous()


def additive(queries: int, keys: int) -> Tensor:
    return torch.where(torch.arange(keys) % 3 == 1, -10000.0, 0.0).expand(2, 1, queries, keys).contiguous()


KINDS: dict[str, tuple[Bare, dict[str, int], Callable[[int, int], Tensor] | None]] = {
    "plain": (Bare(), {}, None),
    "cross": (Bare(), {"keys": 5}, None),
    "an additive mask": (Bare(), {"keys": 7}, additive),
    "a boolean mask": (Bare(), {}, lambda queries, keys: additive(queries, keys) == 0),
    "padded tokens": (Bare(), {}, padded),
    "padded tokens, additive": (Bare(), {}, lambda queries, keys: padded(queries, keys).float().log()),
    "a factor": (Bare(scale=0.5), {}, None),
    "causal": (Bare(is_causal=True), {}, None),
    "fewer heads of keys": (Bare(key_heads=2, enable_gqa=True), {}, None),
    "without heads": (Bare(rank=3), {}, None),
}


FREE = ("plain", "an additive mask", "padded tokens")


@pytest.mark.parametrize(("name", "dynamic"), [*((name, True) for name in FREE), *((name, False) for name in KINDS)])
def test_attention_is_that_of_the_codes(name: str, dynamic: bool, tmp_path: Path) -> None:
    model, sizes, mask = KINDS[name]
    calls = [tokens(model, seed, size, **sizes) for seed, size in ((0, 0.7), (1, 1.0), (2, 0.5))]
    for each in calls if mask else ():
        each["mask"] = mask(each["query"].shape[1], each["key"].shape[1])
    written = export_onnx(
        model, tmp_path / "out", (), calls[0], rest="float", dynamic=dynamic, attention_batches=calls[1:], **CODED
    )
    assert written.attention == {"Bare": "int8"} and "attention: 1 int8" in str(written)
    running = load_exported(tmp_path / "out", "openvino", fixed=not dynamic)
    for seed, size in ((0, 0.7), (5, 1.0), (6, 2.0)):  # of the last much saturates
        given = {**calls[0], **tokens(model, seed, size, **sizes)}
        found, wanted = running(**given).output, reference(model, given, calls)
        assert error(found, wanted) < 2e-6
        assert error(found, model(**given)) < (1 if size > 1 else 0.05)


def nodes(folder: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(folder / "model.onnx", load_external_data=False).graph.node)


def pairs(folder: Path) -> int:
    """Of QuantizeLinear and DequantizeLinear before a MatMul whose both sides are made from codes of inputs."""
    by_output = {name: node for node in nodes(folder) for name in node.output}

    def is_coded(name: str) -> bool:
        node = by_output.get(name)
        while node is not None and node.op_type == "Transpose":
            node = by_output.get(node.input[0])
        back = None if node is None or node.op_type != "DequantizeLinear" else by_output.get(node.input[0])
        return back is not None and back.op_type == "QuantizeLinear"

    products = [node for node in nodes(folder) if node.op_type == "MatMul"]
    return sum(2 for node in products if all(map(is_coded, node.input)))


def unet_and_call() -> tuple[nn.Module, dict[str, Any]]:
    from tests.segquant.deploy import test_unet

    return test_unet.unet(), test_unet.call(2, 8, 8, 7)


def family(name: str) -> tuple[nn.Module, dict[str, Any]]:
    from segquant_bench.pipelines.export.cli import example_of
    from tests.tiny_families import FLUX, PIXART, shallow

    torch.manual_seed(0)
    model = shallow(name, {"flux1_dev": FLUX, "pixart_sigma": PIXART}[name]).eval()
    given = example_of(model)  # zeros
    g = torch.Generator().manual_seed(1)
    filled = {
        key: torch.randn(x.shape, generator=g) if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1
        and "ids" not in key and "mask" not in key else x
        for key, x in given.items()
    }  # fmt: skip
    if "encoder_attention_mask" in filled:
        filled["encoder_attention_mask"][:, :5] = 1
    return model, filled


class Rounding(TorchFunctionMode):
    """Queries and keys on a grid per head, in torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nnf.scaled_dot_product_attention:
            given = vars(Call(*args, **(kwargs or {})))
            return func(**{**given, "query": self.rounded(given["query"]), "key": self.rounded(given["key"])})
        return func(*args, **(kwargs or {}))

    def rounded(self, x: Tensor) -> Tensor:
        step = x.abs().amax((0, 2, 3), keepdim=True) / 127
        return (x / step).round() * step


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, dict[str, Any]]], int]] = {
    "joint attention": (lambda: (sd3(), call(2, 8, 8, 7)), 1),
    "a UNet": (unet_and_call, 8),
    "rotary embeddings": (lambda: family("flux1_dev"), 2),
    "masks of prompts": (lambda: family("pixart_sigma"), 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_denoisers_are_near_their_float_selves(name: str, tmp_path: Path) -> None:
    make, count = MODELS[name]
    model, given = make()
    written = export_onnx(model, tmp_path / "out", (), given, rest="float", dynamic=False, **CODED)
    assert list(written.attention.values()) == ["int8"] * count and pairs(tmp_path / "out") == 2 * count
    with torch.no_grad():
        with Rounding():
            wanted = model(**{**given, "return_dict": False})[0]
        exact = model(**{**given, "return_dict": False})[0]
    found = load_exported(tmp_path / "out", "openvino")(**given)[0]
    assert error(found, wanted) < 0.5 * error(found, exact) < 0.02


@pytest.fixture(scope="module")
def quantized() -> nn.Module:
    return quantize_(sd3(), presets.smoothquant("w8a8"), [call(2, 8, 8, 7, seed) for seed in range(4)], {})


@pytest.mark.parametrize("fixed", [True, False])
def test_it_runs_in_integers(
    quantized: nn.Module, fixed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "products_are_exact", lambda: True)  # as on CPUs with VNNI
    export_onnx(quantized, tmp_path / "out", (), call(2, 8, 8, 7), **CODED)
    running = load_exported(tmp_path / "out", "openvino", fixed=fixed)
    found = running(**call(2, 8, 8, 7, seed=5))[0]
    assert running.engine.products()["int8 attention"] == 1
    with torch.no_grad():
        wanted, ours = (each(**call(2, 8, 8, 7, seed=5))[0] for each in (sd3(), quantized))
    assert error(found, wanted) < 1.1 * error(ours, wanted)


def test_what_is_written_by_default_stays(quantized: nn.Module, tmp_path: Path) -> None:
    for name, settings in (("before", {}), ("float", {"attention": "float"})):
        written = export_onnx(quantized, tmp_path / name, (), call(2, 8, 8, 7), profile="openvino", **settings)
        assert written.attention == {} and pairs(tmp_path / name) == 0 and "attention" not in str(written)
    files = [(tmp_path / name / "model.onnx").read_bytes() for name in ("before", "float")]
    assert files[0] == files[1]
    entry = next(each for each in onnx.load(tmp_path / "float" / "model.onnx").metadata_props if each.key == KEY)
    assert "attention" not in json.loads(entry.value)  # as files of before, which are read
    assert Manifest.loaded(entry.value, "model.onnx").attention == {}


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        zero = x * 0
        return nnf.scaled_dot_product_attention(zero, zero, x)


def test_queries_that_are_zero_in_every_call(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 5, 8)
    export_onnx(Silent(), tmp_path / "out", (x,), rest="float", **CODED)
    found = load_exported(tmp_path / "out", "openvino")(x).output
    assert torch.allclose(found, x.mean(-2, keepdim=True).expand_as(x), atol=1e-6)


class Dropping(nn.Module):
    """One attention that stays torch's, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Bare(dropout_p=1e-9), Bare()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x, x, x) + self.second(x, x, x) + self.second(x, x, 2 * x)


def test_each_attention_is_told(tmp_path: Path) -> None:
    x = torch.randn(2, 5, HEADS * WIDTH)
    written = export_onnx(Dropping(), tmp_path / "out", (x,), rest="float", **CODED)
    assert written.attention == {"first": "float", "second": "int8", "second, call 2": "int8"}
    assert str(written).endswith("attention: 1 float, 2 int8")
    assert load_exported(tmp_path / "out", "openvino").manifest.attention == written.attention


def test_refusals(tmp_path: Path) -> None:
    model, given = Bare(), tokens(Bare(), 0)

    def refused(words: str, model: nn.Module = model, given: Any = given, **settings: Any) -> None:
        with pytest.raises(QuantizationError, match=words):
            export_onnx(model, tmp_path / "out", (), given, **{"rest": "float", **CODED, **settings})
        assert not (tmp_path / "out").exists()

    for profile in ("ort", "tensorrt"):
        refused(f"files for {profile} have attention in float; profile='openvino' takes it", profile=profile)
    refused("no attention 'int4'; nearest: int8", attention="int4")
    refused("attention_batches are given, and attention is 'float'", attention="float", attention_batches=[given])
    refused("put it into a list", attention_batches=given)
    refused("Bare cannot run on a calibration batch", attention_batches=[{"query": given["query"]}])
    refused("Block has no attention that calls F.scaled_dot_product_attention", Block(), block_batches(1, 2)[0])
    for value in (torch.nan, torch.inf):
        broken = {**given, "query": given["query"] * value}
        refused("the queries of its attention contain NaN or inf", attention_batches=[broken])


class Again(nn.Module):
    """A model that calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Bare()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, once: bool = False) -> Tensor:
        found: Tensor = self.attention(query, key, value).transpose(1, 2).flatten(2)
        return found if once else self(found, key, value, once=True)


def test_a_model_that_calls_itself_has_two_attentions(tmp_path: Path) -> None:
    model, given = Again(), tokens(Bare(), 0)
    written = export_onnx(model, tmp_path / "out", (), given, rest="float", dynamic=False, **CODED)
    assert written.attention == {"attention": "int8", "attention, call 2": "int8"}
    assert error(load_exported(tmp_path / "out", "openvino")(**given).output, model(**given)) < 0.05


def test_threads_that_share_an_engine_get_their_own_outputs(tmp_path: Path) -> None:
    model = Bare()
    export_onnx(model, tmp_path / "out", (), tokens(model, 0), rest="float", profile="openvino")
    running = load_exported(tmp_path / "out", "openvino", fixed=False)
    calls = [tokens(model, seed, queries=5 + seed % 2) for seed in range(8)]
    wanted = [running(**each).output for each in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = list(pool.map(lambda each: running(**each).output, calls))
            assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("options", [{"fixed": 0}, {"fixed": "yes"}, {"bfloat16": "no"}])
def test_options_are_true_or_false(options: dict[str, Any], tmp_path: Path) -> None:
    model = Bare()
    export_onnx(model, tmp_path / "out", (), tokens(model, 0), rest="float", profile="openvino")
    with pytest.raises(QuantizationError, match="give True or False"):
        load_exported(tmp_path / "out", "openvino", **options)
