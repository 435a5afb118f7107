"""Pieces of a computation that is killed again and again: every piece is made once, and the bytes are the same."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from segquant import keep as keeping
from segquant import presets, quantize_with_outcome_
from segquant.keep import Keeper, Pace
from segquant.layers import parallel
from segquant.layers.linear import QuantLinear
from segquant.measure import model_errors
from segquant.observers.observe import observe_in_groups
from segquant.offload.quantize import quantize_offloaded_with_outcome_
from segquant.offload.weights import Offloaded
from tests.segquant.support import Block, block_batches, tensor

Make = Callable[[Keeper | None], Any]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(16, 16)
        self.blocks = nn.ModuleList([Block(16, seed=1), Block(16, seed=2)])

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x, condition)
        return x


def _model() -> Model:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Model()


class Kill(BaseException):
    """As a signal: no Exception."""


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """Every process dies behind its third new piece; what was put and which layers were solved."""
    done: dict[str, list[str]] = {"put": [], "solved": []}
    put, solve = Keeper.put, QuantLinear.from_float

    def dying(self: Keeper, name: str, *args: Any) -> bool:
        assert put(self, name, *args)
        done["put"].append(f"{self.folder.name}/{name}")
        if len(done["put"]) % 3 == 0:
            raise Kill
        return True

    def counted(*args: Any, **kwargs: Any) -> Any:
        done["solved"].append(kwargs["name"])
        return solve(*args, **kwargs)

    monkeypatch.setattr(keeping, "SHARE", 1.0)  # snapshots behind every batch
    monkeypatch.setattr(Keeper, "put", dying)
    monkeypatch.setattr(parallel, "QuantLinear", SimpleNamespace(from_float=counted))
    yield done


def _until_done(make: Make, folder: Path) -> Any:
    for _ in range(200):
        try:
            return make(Keeper(folder))
        except Kill:
            continue
    raise AssertionError("it never ends")


def _quantized(method: Any, **options: Any) -> Make:
    def make(keep: Keeper | None) -> tuple[nn.Module, Any]:
        model = _model()
        outcome = quantize_with_outcome_(model, method, block_batches(3, 1, 16), keep=keep, **options)
        return model, outcome.to_dict()

    return make


def _same(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]), key


FEW = {"optimizer": "smooth", "alpha": 0.5, "calibrator": "amax", "rotate": False, "ranges": "amax"}
"""Fields that leave `auto` few candidates."""
METHODS = {
    "rtn": presets.rtn("w8a8_dynamic"),
    "segquant_g": presets.segquant_g("w8a8_tensor", alpha=0.5),
    "ptq4dit": presets.ptq4dit("w8a8"),
    "folded": presets.segquant_a("w8a8_tensor", alpha=0.5, smoothing="fold"),
    "q_diffusion": presets.q_diffusion("w8a8", reconstruction={"steps": 5}),
    "auto": presets.auto("w8a8_tensor", seglinear=False, dualscale=False, overrides={"*": FEW}),
}


SLOW = ("rtn", "segquant_g", "folded", "q_diffusion", "auto")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in METHODS]
)
def test_every_piece_is_made_once(name: str, tmp_path: Path, mortal: dict[str, list[str]]) -> None:
    make = _quantized(METHODS[name])
    expected, outcome = make(None)
    layers = list(mortal["solved"])
    mortal["solved"].clear()
    found, again = _until_done(make, tmp_path)
    _same(found, expected)
    assert again == outcome
    assert sorted(mortal["solved"]) == sorted(layers)
    assert len([entry for entry in mortal["put"] if "/layer " in entry]) == len(layers) == 9
    readings = [entry for entry in mortal["put"] if "/reading " in entry]
    assert len(readings) == 0 if name == "rtn" else len(readings) >= 3


def test_readings_within_a_memory_limit(tmp_path: Path, mortal: dict[str, list[str]]) -> None:
    """Gram matrices in several readings, and another limit in every process."""
    limits = iter([15_000, 32_000] * 200)
    method = presets.gptq("w8a8")
    expected, _ = _quantized(method)(None)
    found, outcome = _until_done(lambda keep: _quantized(method, memory_limit=next(limits))(keep), tmp_path)
    _same(found, expected)
    assert outcome["passes"] > 1


def test_a_reading_that_is_cut_anywhere_has_the_same_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SHARE", 1.0)
    model, batches, calls = Block(), block_batches(6, 3), [0]
    model.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    options: dict[str, Any] = {"gram": True, "split_gram": True, "salience": True, "reservoir": 16}
    (whole,) = observe_in_groups(model, batches, **options)
    calls[0] = 0
    for stop in range(1, 7):

        def some(stop: int = stop) -> Iterator[Any]:
            yield from batches[:stop]
            raise Kill

        with pytest.raises(Kill):
            list(observe_in_groups(model, some(), **options, keep=Keeper(tmp_path)))
    (found,) = observe_in_groups(model, batches, **options, keep=Keeper(tmp_path))
    assert calls[0] == 6
    for name, stats in whole.stats.items():
        other = found.stats[name]
        assert torch.equal(stats.gram, other.gram) and torch.equal(stats.gram_first, other.gram_first)
        assert torch.equal(stats.salience, other.salience) and torch.equal(stats.sample, other.sample)
        assert torch.equal(stats.mean_square, other.mean_square) and torch.equal(stats.positive, other.positive)
        assert (stats.rows, stats.calls) == (other.rows, other.calls)


def test_blocks_from_disk(tmp_path: Path, mortal: dict[str, list[str]]) -> None:
    state = _model().state_dict()

    def make(keep: Keeper | None) -> tuple[nn.Module, Any]:
        with torch.device("meta"):
            model = Model()
        offloaded = Offloaded(model, lambda names: {name: state[name] for name in names})
        method = presets.segquant_g("w8a8_tensor", alpha=0.5)
        outcome = quantize_offloaded_with_outcome_(offloaded, method, block_batches(3, 1, 16), keep=keep)
        return offloaded.model, outcome.to_dict()

    expected, outcome = make(None)
    mortal["solved"].clear()
    found, again = _until_done(make, tmp_path)
    _same(found, expected)
    assert again == outcome
    assert len(mortal["solved"]) == len(set(mortal["solved"])) == 9


def test_errors_go_on_behind_the_last_batch(tmp_path: Path, mortal: dict[str, list[str]]) -> None:
    batches, (quantized, _) = block_batches(4, 7, 16), _quantized(METHODS["rtn"])(None)
    exact = _model()
    whole = model_errors(exact, quantized, batches, parts=[2] * 4)
    assert (
        _until_done(lambda keep: model_errors(exact, quantized, batches, parts=[2] * 4, keep=keep), tmp_path) == whole
    )
    assert mortal["put"] == [f"{tmp_path.name}/errors"] * 4


def test_pieces_are_as_they_were_put(tmp_path: Path) -> None:
    keep = Keeper(tmp_path)
    tensors = {
        "a/b": tensor(3, 4)[:, 1:3],
        "channels last": tensor(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "half": tensor(3).bfloat16(),
        "none": torch.empty(0, 3),
        "number": torch.tensor(3, dtype=torch.int64),
    }
    about = {"list": [1.1, None, float("inf")], "ü": "\n"}
    assert keep.put("layer ../1", tensors, about)
    found = Keeper(tmp_path).get("layer ../1")
    assert found is not None and found.about == about and found.tensors.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(found.tensors[key], value) and found.tensors[key].dtype == value.dtype
    assert found.tensors["channels last"].stride() == tensors["channels last"].stride()
    assert Keeper(tmp_path).get("layer") is None and Keeper(tmp_path / "b").get("layer ../1") is None
    assert keep.within("b").get("layer ../1") is None
    keep.drop("layer ../1")
    assert keep.get("layer ../1") is None and not list(tmp_path.rglob("*.safetensors"))


def test_a_damaged_piece_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep = Keeper(tmp_path)
    keep.put("one", {"x": tensor(100)})
    (path,) = tmp_path.iterdir()
    for damage in (lambda data: data[:50], lambda data: data[:-50], lambda data: b"", lambda data: b"\xff" * 20):
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        assert keep.get("one") is None
        path.write_bytes(whole)
    keep.put("two", {})
    (other,) = set(tmp_path.iterdir()) - {path}
    shutil.copyfile(path, other)  # another piece's content
    assert keep.get("two") is None
    assert all("made again" in record.getMessage() for record in caplog.records) and len(caplog.records) == 5


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """As much as all pieces take stays free, for what they become."""
    keep, free = Keeper(tmp_path), [5000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with caplog.at_level(logging.WARNING):
        assert keep.put("one", {"x": torch.zeros(500)})  # 2,000 bytes, and as many again
        free[0] = 2900
        assert not keep.within("b").put("two", {"x": torch.zeros(250)})
        free[0] = 10**9
        assert keep.put("three", {"x": torch.zeros(250)})
    assert len(caplog.records) == 1 and "room" in caplog.text


def test_a_quota_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    keep = Keeper(tmp_path)
    monkeypatch.setattr(keeping, "save_file", full)
    assert not keep.put("one", {}) and not keep.put("two", {})
    assert len(caplog.records) == 1 and not list(tmp_path.iterdir())


def test_snapshots_take_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(keeping.time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.is_due()
    pace.took(2.0)
    now[0] = 117.9
    assert not pace.is_due()
    now[0] = 118.1
    assert pace.is_due()
