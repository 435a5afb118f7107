"""Quantized block by block from disk: the same model as quantized whole; what cannot be done that way is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from segquant import QuantizationError, presets
from segquant.layers.linear import QuantLinear
from segquant.offload.block_shell import stray_blocks
from segquant.offload.quantize import quantize_offloaded_with_outcome_
from segquant.offload.weights import FileWeights, Offloaded, Weights, blocks
from tests.segquant.support import OUTCOMES, told
from tests.tiny import tiny_denoiser


def state_weights(state: Mapping[str, Tensor]) -> Weights:
    """The weights of a state dict that is in memory."""
    return lambda names: {name: state[name] for name in names}


def sd3_batches(count: int = 6) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    return [
        {
            "hidden_states": torch.randn(2, 4, 16, 16),
            "encoder_hidden_states": torch.randn(2, 5, 64),
            "pooled_projections": torch.randn(2, 64),
            "timestep": torch.full((2,), 100.0 * index + 1),
        }
        for index in range(count)
    ]


class UNet(nn.Module):
    """Skip connections across blocks, a block that is itself a linear, one without any, and linears in no block."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(8, 16)
        self.down = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 16)) for _ in range(2)])
        self.middle = nn.ModuleList([nn.LayerNorm(16), nn.Linear(16, 16)])
        self.up = nn.ModuleList([nn.Sequential(nn.Linear(32, 16), nn.GELU()) for _ in range(2)])
        self.outlet = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        skips = []
        for block in self.down:
            x = x + block(x)
            skips.append(x)
        for block in self.middle:
            x = block(x)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], -1))
        return self.outlet(x)


def offloaded_pair(model: nn.Module, path: Path) -> Offloaded:
    """The model's weights in a file, and a copy of it that reads them."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    with init_empty_weights():
        empty = tiny_denoiser() if "SD3" in type(model).__name__ else type(model)()
    return Offloaded(empty.eval(), FileWeights([path]))


def streamed_(offloaded: Offloaded, *args: Any, **kwargs: Any) -> nn.Module:
    OUTCOMES[offloaded.model] = quantize_offloaded_with_outcome_(offloaded, *args, **kwargs)
    return offloaded.model


def assert_same(left: nn.Module, right: nn.Module) -> None:
    one, other = left.state_dict(), right.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert OUTCOMES[left].segments == OUTCOMES[right].segments
    assert OUTCOMES[left].method == OUTCOMES[right].method


def float_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type != "meta")


@pytest.mark.parametrize(
    ("preset", "precision", "settings"),
    [
        ("segquant_g", "w8a8_tensor", {}),
        ("segquant_g", "w4a8", {}),
        ("smoothquant", "w8a8_tensor", {"overrides": {"*.ff.*": {"precision": "w8a8"}}}),
        ("rtn", "w8a8_dynamic", {"skip": ["transformer_blocks.0.*"]}),
        ("ptq4dit", "w8a8", {}),
    ],
)
def test_streamed_layers_are_those_of_the_whole_model(
    preset: str, precision: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = tiny_denoiser()
    offloaded = offloaded_pair(model, tmp_path / "w.safetensors")
    method = getattr(presets, preset)(precision, **settings)
    batches = sd3_batches()
    streamed = streamed_(offloaded, method, batches)
    assert not offloaded.waiting
    assert_same(streamed, told(model, method, batches))
    with torch.no_grad():
        assert torch.equal(streamed(**batches[0]).sample, model(**batches[0]).sample)


@pytest.mark.parametrize("limit", [None, 32 * 32 * 12])
def test_skip_connections_and_blocks_that_are_linears(limit: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNet().eval()
    offloaded = offloaded_pair(model, tmp_path / "w.safetensors")
    batches = [(torch.randn(3, 5, 8),) for _ in range(5)]
    done: list[tuple[str, int, int]] = []
    streamed = streamed_(
        offloaded, presets.gptq("w8a8_tensor"), batches, memory_limit=limit, progress=lambda *told: done.append(told)
    )
    assert_same(streamed, told(model, presets.gptq("w8a8_tensor"), batches))
    assert isinstance(streamed.middle[1], QuantLinear) and isinstance(streamed.outlet, QuantLinear)
    assert done == [("quantize", number, 9) for number in range(1, 10)]


def test_prompts_are_held_out_together(tmp_path: Path) -> None:
    class Origins(list):
        origins = (0, 0, 1, 1, 2, 2)

    torch.manual_seed(0)
    model = tiny_denoiser()
    offloaded = offloaded_pair(model, tmp_path / "w.safetensors")
    batches = Origins(sd3_batches())
    method = presets.segquant_a("w8a8_tensor")
    assert_same(streamed_(offloaded, method, batches), told(model, method, batches))


def test_one_block_in_memory_at_a_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_denoiser(layers=2)
    expected = model(**sd3_batches(1)[0]).sample
    whole = float_bytes(model)
    offloaded = offloaded_pair(model, tmp_path / "w.safetensors")
    largest = max(float_bytes(block) for block in model.transformer_blocks)
    rest = float_bytes(offloaded.model)
    assert rest == whole - sum(float_bytes(block) for block in model.transformer_blocks)
    seen = []
    for block in offloaded.waiting.values():
        block.attn.register_forward_hook(lambda *_: seen.append(float_bytes(offloaded.model)))
    assert torch.equal(offloaded.model(**sd3_batches(1)[0]).sample, expected)
    assert len(seen) == 2 and max(seen) <= rest + largest and float_bytes(offloaded.model) == rest


def test_an_error_in_a_block_takes_its_weights_out_again(tmp_path: Path) -> None:
    model = UNet().eval()
    offloaded = offloaded_pair(model, tmp_path / "w.safetensors")
    rest = float_bytes(offloaded.model)
    with pytest.raises(RuntimeError):
        offloaded.model.down[0](torch.zeros(2, 3))
    assert float_bytes(offloaded.model) == rest


class Strays(nn.Module):
    """Block 0's first linear is called from outside too, block 2 twice, block 3 never."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.SiLU()) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers[:3]:
            x = block(x)
        return self.layers[2](x) + self.layers[0][0](x)


def test_blocks_that_cannot_wait_stay_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Strays().eval()
    batches = [(torch.randn(6, 4),) for _ in range(3)]
    names = list(blocks(model))
    assert stray_blocks(model, names, batches[0]) == ["layers.0", "layers.2", "layers.3"]
    offloaded = offloaded_pair(model, tmp_path / "w.safetensors")
    method = presets.smoothquant("w8a8_tensor", on_uncalled="skip")
    assert_same(streamed_(offloaded, method, batches), told(model, method, batches))


class Ways(Strays):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = self.layers if float(x.sum()) > 0 else reversed(self.layers)
        for block in order:
            x = block(x)
        return x


class InPlace(Strays):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.add_(1))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.Block() for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            x = block(x)
        return x


@pytest.mark.parametrize(
    ("kind", "method", "words"),
    [
        (Ways, presets.rtn("w8a8_tensor"), "different ways.*layers.0 and layers.3"),
        (InPlace, presets.rtn("w8a8_tensor"), "layers.0 changes its inputs in place"),
        (UNet, presets.auto("w8a8_tensor"), "budget over all layers"),
        (UNet, presets.q_diffusion("w8a8_tensor"), "block reconstruction"),
        (UNet, presets.rtn("w8a8_tensor", overrides={"nowhere*": {"precision": "w8a8"}}), "nowhere"),
    ],
)
def test_what_cannot_be_streamed_is_said(kind: type[nn.Module], method: Any, words: str) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    offloaded = Offloaded(kind().eval(), state_weights(dict(model.state_dict())))
    width = 8 if kind is UNet else 4
    batches = [(torch.ones(2, width),), (-torch.ones(2, width),)]
    with pytest.raises(QuantizationError, match=words):
        streamed_(offloaded, method, batches)


def test_every_dtype_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8]
    kinds += [torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
    values = torch.randn(5, 3) * 9
    tensors = {str(kind): values.to(kind) for kind in kinds} | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}
    path = tmp_path / "all.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    found, expected = FileWeights([path])(list(tensors)), load_file(path)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(QuantizationError, match="ends too early"):
        FileWeights([path])(list(tensors))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    model = UNet()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for change, words in (({"inlet.weight": None}, "lack inlet.weight"), ({"inlet.weight": torch.ones(3)}, "shape")):
        path = tmp_path / "w.safetensors"
        save_file({name: t for name, t in {**state, **change}.items() if t is not None}, path)
        with init_empty_weights():
            empty = UNet()
        with pytest.raises(QuantizationError, match=words):
            Offloaded(empty, FileWeights([path]))
    for content in (b"", b"12345678", (2).to_bytes(8, "little") + b"[] "):
        path.write_bytes(content)
        with pytest.raises(QuantizationError, match="no readable safetensors file"):
            FileWeights([path])
    with pytest.raises(QuantizationError, match="Linear has no block"):
        Offloaded(nn.Linear(2, 2), state_weights({}))
    with pytest.raises(QuantizationError, match="no safetensors files"):
        FileWeights([])
