"""Other libraries around a quantized model: what they would save or wrap wrongly is refused, the rest runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import segquant
from segquant import QuantizationError, load_quantized, presets, save_quantized
from segquant.layers.saving import refuse_save_pretrained_
from tests.segquant.support import tensor

diffusers = pytest.importorskip("diffusers")
huggingface_hub = pytest.importorskip("huggingface_hub")
X = tensor(3, 8)


class Around(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A model of diffusers that quantize_ never sees."""

    config_name = "config.json"

    @diffusers.configuration_utils.register_to_config
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Hub(nn.Module, huggingface_hub.PyTorchModelHubMixin):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))


class HubOfOurs(Hub):
    def _save_pretrained(self, save_directory: Path) -> None:
        save_quantized(self, save_directory / "model")


def around(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind()
    segquant.quantize_(model.inner, presets.rtn("w8a8_dynamic"), [])
    return model


def weights(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt")]


@pytest.mark.usefixtures("untaught")
@pytest.mark.parametrize("kind", [Around, Hub])
def test_a_model_around_the_quantized_one_is_not_saved_by_others(kind: type[nn.Module], tmp_path: Path) -> None:
    model = around(kind)
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(
            QuantizationError, match=f"layers of this {kind.__name__}: its files would load with random"
        ):
            each.save_pretrained(tmp_path / "saved")
    assert not weights(tmp_path)
    assert set(model.state_dict()) == {f"inner.{name}" for name in model.inner.state_dict()}


@pytest.mark.usefixtures("untaught")
def test_a_pipeline_around_the_model_around_is_not_saved_by_others(tmp_path: Path) -> None:
    pipeline = diffusers.DiTPipeline(around(Around), None, diffusers.DDIMScheduler())
    with pytest.raises(QuantizationError, match="its files would load with random weights"):
        pipeline.save_pretrained(tmp_path / "saved")
    assert not weights(tmp_path)


@pytest.mark.usefixtures("untaught")
def test_a_float_model_beside_the_quantized_one_is_saved(tmp_path: Path) -> None:
    both = nn.Sequential(around(Around), Around())
    refuse_save_pretrained_(both)
    with pytest.raises(QuantizationError, match="its files would load with random weights"):
        both[0].save_pretrained(tmp_path / "quantized")
    both[1].save_pretrained(tmp_path / "float")
    assert not (tmp_path / "quantized").exists() and weights(tmp_path / "float")


def test_a_class_that_saves_by_save_quantized_may_be_called_so(tmp_path: Path) -> None:
    model = around(HubOfOurs)
    model.save_pretrained(tmp_path / "saved")
    loaded = load_quantized(tmp_path / "saved" / "model", Hub())
    assert torch.equal(loaded.inner(X), model.inner(X))


def test_ours_saves_the_model_around(tmp_path: Path) -> None:
    model = around(Around)
    loaded = load_quantized(save_quantized(model, tmp_path / "model"), Around())
    assert torch.equal(loaded(X), model(X))


@pytest.fixture
def group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    quantized = around(Around).inner
    with pytest.raises(RuntimeError, match="is not needed when a module"):
        DistributedDataParallel(quantized)
    model = nn.Sequential(quantized, nn.Linear(4, 4))
    x = X.clone().requires_grad_()
    exact = model(x)
    exact.sum().backward()
    wrapped = DistributedDataParallel(model)
    before, weight = x.grad.clone(), model[1].weight.grad.clone()
    for _ in range(2):
        x.grad = model[1].weight.grad = None
        found = wrapped(x)
        found.sum().backward()
        assert torch.equal(found, exact) and torch.equal(x.grad, before)
        assert torch.equal(model[1].weight.grad, weight)
    loaded = load_quantized(save_quantized(wrapped, tmp_path / "model"), nn.Sequential(Around().inner, nn.Linear(4, 4)))
    assert torch.equal(loaded(X), exact)
