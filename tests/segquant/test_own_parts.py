"""A user's own package: a calibrator, an optimizer with its transform, a range, a rotation, a backend, a precision."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import segquant
from segquant import Method, QuantizationError, QuantLinear, load_quantized, presets, save_quantized, set_backend_
from segquant.auto.budget import layer_bytes, layer_operations
from segquant.method.plan_file import read_plan, write_plan
from segquant.registry import SLOTS, table
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches

PACKAGE = {
    "__init__": "from mine import calibrator, kernel, optimizer, precision, ranges, rotation",
    "calibrator": """
from dataclasses import dataclass
from typing import ClassVar
from segquant import Calibrator, register
from segquant.numerics import functional

@register
@dataclass(frozen=True)
class Toward(Calibrator):
    \"\"\"Rounds a little below: shares of the step, weighted by what the inputs' Gram matrix says.\"\"\"
    share: float = 0.1
    name: ClassVar[str] = "toward"
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "stats"})

    def prepare(self, inputs):
        assert inputs.rows.shape[1] == inputs.gram.shape[0]
        return (inputs.gram.diagonal() > inputs.gram.diagonal().mean()).float()

    def round(self, weight, scale, dtype, prepared):
        return functional.fake_quantize(weight - self.share * scale * prepared, scale, dtype)
""",
    "optimizer": """
from dataclasses import dataclass
from typing import ClassVar
import torch
from segquant import Optimizer, Transform, register
from segquant.optimizers import Fitted

@register
@dataclass(frozen=True)
class Flip(Transform):
    \"\"\"Input channels in another order, times a power of two.\"\"\"
    power: int
    name: ClassVar[str] = "flip"

    def buffers(self, place):
        return {"flip_order": ((place.in_features,), torch.int64)}

    def rows(self, x, place):
        return x[..., place.tensors["flip_order"]] * 2.0**self.power

    def weight(self, weight, place):
        return weight[..., place.tensors["flip_order"]] / 2.0**self.power

    def undo(self, weight, place):
        return weight[..., place.tensors["flip_order"].argsort()] * 2.0**self.power

    def gram(self, gram, place):
        order = place.tensors["flip_order"]
        return gram[order][:, order] * 4.0**self.power

    def operations(self, place):
        return float(place.in_features * len(place.branches))

@register
@dataclass(frozen=True)
class Sorted(Optimizer):
    \"\"\"Channels by falling energy, so that groups hold channels of a size.\"\"\"
    power: int = 1
    name: ClassVar[str] = "sorted"
    needs: ClassVar[frozenset[str]] = frozenset({"stats"})

    @property
    def transforms(self):
        return (Flip(self.power),)

    def fit(self, problem):
        return Fitted(self.transforms, {"flip_order": problem.stats.mean_square.argsort(descending=True)})
""",
    "ranges": """
from dataclasses import dataclass
from typing import ClassVar
from segquant import register
from segquant.ranges import Amax

@register
@dataclass(frozen=True)
class Share(Amax):
    share: float = 0.9
    name: ClassVar[str] = "share"

    def weight_scale(self, weight, spec, rows, columns, importance=None):
        return super().weight_scale(weight, spec, rows, columns) * self.share

    def input_range(self, positive, negative, rows, grid, importance=None):
        above, below = super().input_range(positive, negative, rows, grid)
        return above * self.share, below * self.share
""",
    "rotation": """
from dataclasses import dataclass
from typing import ClassVar
import torch
from segquant import Rotation, Transform, register

@register
@dataclass(frozen=True)
class Turn(Transform):
    name: ClassVar[str] = "turn"
    mixes: ClassVar[bool] = True

    def buffers(self, place):
        return {"turn_matrix": ((place.in_features, place.in_features), torch.float32)}

    def rows(self, x, place):
        return x @ place.tensors["turn_matrix"]

    def weight(self, weight, place):
        return weight @ place.tensors["turn_matrix"]

    def undo(self, weight, place):
        return weight @ place.tensors["turn_matrix"].T

    def gram(self, gram, place):
        matrix = place.tensors["turn_matrix"].to(gram.dtype)
        return matrix.T @ gram @ matrix

@register
@dataclass(frozen=True)
class Random(Rotation):
    name: ClassVar[str] = "random_orthogonal"
    transform: ClassVar[Transform] = Turn()

    def fit(self, layout, seed, device):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(layout.in_features, layout.in_features, generator=generator)
        return {"turn_matrix": torch.linalg.qr(drawn).Q.to(device)}
""",
    "kernel": """
from typing import ClassVar
from segquant import Backend, register
from segquant.kernels.reference import Reference

@register
class Counting(Backend):
    \"\"\"The reference, counting what is packed; no per-token inputs.\"\"\"
    name: ClassVar[str] = "counting"
    packs = 0

    def why_not(self, layout, device):
        spec = layout.scheme.input
        return "takes no per-token inputs" if spec is not None and spec.granularity == "token" else None

    def pack(self, layout, tensors):
        type(self).packs += 1
        return Reference().pack(layout, tensors)

    def linear(self, x, layout, packed):
        return Reference().linear(x, layout, packed)
""",
    "precision": """
from segquant import QuantScheme, QuantSpec, register

register(QuantScheme(QuantSpec("int4", "group", 16), QuantSpec("int8", "token", dynamic=True)), name="w4g16a8")
""",
}

METHODS = {
    "calibrator": {"calibrator": "toward", "share": 0.2},
    "optimizer": {"optimizer": "sorted", "power": 2},
    "ranges": {"ranges": "share"},
    "rotation": {"rotate": "random_orthogonal", "optimizer": "smooth", "alpha": 0.5},
    "all": {"optimizer": "sorted", "calibrator": "toward", "ranges": "share", "rotate": "random_orthogonal",
            "bias_correction": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package's folder, importable and imported; all of it forgotten afterwards."""
    root = tmp_path_factory.mktemp("own")
    (root / "mine").mkdir()
    for name, text in PACKAGE.items():
        (root / "mine" / f"{name}.py").write_text(text)
    before = {slot: dict(table(slot)) for slot in SLOTS}
    sys.path.insert(0, str(root))
    importlib.import_module("mine")
    yield root
    sys.path.remove(str(root))
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    for slot in SLOTS:
        table(slot).clear()
        table(slot).update(before[slot])


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("precision", ["w8a8_tensor", "w4g16a8", "w4a8_channel"])
def test_own_parts_quantize_and_are_loaded_bit_for_bit(
    package: Path, precision: str, kind: str, tmp_path: Path
) -> None:
    method = Method.of("mine", precision, seglinear=True, dualscale=True, **METHODS[kind])
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    model, batch = Block(), block_batches(1, seed=2)[0]
    outcome = segquant.quantize_with_outcome_(model, method, block_batches(6, seed=1), BLOCK_SEGMENTS)
    assert segquant.output_error(Block(), model, [batch]) < 0.6
    save_quantized(model, tmp_path / "model", outcome)
    loaded = load_quantized(tmp_path / "model", Block())
    assert torch.equal(loaded(**batch), model(**batch))
    assert segquant.read_outcome(tmp_path / "model") == outcome
    for name in BLOCK_SEGMENTS:
        layer = getattr(loaded, name)
        assert layer.layout == getattr(model, name).layout
        assert layer_bytes(layer.layout, 0) + (layer.bias.nbytes if layer.layout.bias else 0) == layer.weight_bytes()


def test_an_own_transform_works_everywhere(package: Path) -> None:
    """Undone in the weight, counted, and learnt through by block reconstruction; auto takes it where it is pinned."""
    linear, stats = Block().down, segquant.observe(Block(), block_batches(6, seed=1), gram=True)["down"]
    plain, own = (
        QuantLinear.from_float(linear, Method.of("m", "w8a8_dynamic", optimizer=name), stats)
        for name in ("none", "sorted")
    )
    assert torch.equal(plain.weight, own.weight)  # scales by row: another order and powers of two change no code
    assert layer_operations(own.layout) == layer_operations(plain.layout) + 64
    model = Block()
    hasty = {"steps": 5, "rows": 4, "lr": 0.06, "warmup": 0.1, "strength": 100.0, "beta_start": 4.0}
    method = presets.q_diffusion("w4a8_channel", reconstruction=hasty)
    segquant.quantize_(model, method.changed(optimizer="sorted"), block_batches(4, seed=1))
    assert segquant.output_error(Block(), model, block_batches(1, seed=2)) < 0.5
    chosen = presets.auto("w8a8_tensor", overrides={"*": {"optimizer": "sorted"}}, budget={"operations": 4})
    outcome = segquant.quantize_with_outcome_(Block(), chosen, block_batches(12, seed=1), BLOCK_SEGMENTS)
    assert outcome.choices is not None and all(
        entry is not None and entry.optimizer.name == "sorted"
        for entry in map(outcome.method.for_layer, BLOCK_SEGMENTS)
    )


def test_an_own_backend_is_chosen_and_refuses(package: Path, tmp_path: Path) -> None:
    from mine.kernel import Counting  # type: ignore[import-not-found]

    mixed = presets.rtn("w8a8_tensor", overrides={"down": {"precision": "w8a8_dynamic"}})
    model, batch = Block(), block_batches(1, seed=2)[0]
    segquant.quantize_(model, mixed, block_batches(3, seed=1))
    expected = model(**batch)
    with pytest.raises(QuantizationError, match=r"backend 'counting' cannot run down \(takes no per-token inputs\)"):
        set_backend_(model, "counting")
    assert set(segquant.backends(model).values()) == {"reference"}
    before = Counting.packs
    table = set_backend_(model, "counting", fallback="reference")
    assert [(each.layer, each.backend, each.reason) for each in table if each.reason] == [
        ("down", "reference", "takes no per-token inputs")
    ]
    assert segquant.backends(model) == {"ada": "counting", "up": "counting", "down": "reference", "out": "counting"}
    assert Counting.packs == before + 3  # at once, for compilers
    assert torch.equal(model(**batch), expected) and torch.equal(model(**batch), expected)
    assert Counting.packs == before + 3
    model.to(torch.float32)
    assert torch.equal(model(**batch), expected) and Counting.packs == before + 6
    save_quantized(model, tmp_path / "model")
    with pytest.raises(QuantizationError, match="cannot run down"):
        load_quantized(tmp_path / "model", Block(), backend="counting")
    with pytest.raises(QuantizationError, match="unknown backend 'contng'; nearest: counting"):
        set_backend_(model, "contng")


def test_files_name_no_code_to_import(package: Path, tmp_path: Path) -> None:
    """A process that has not imported the package is told so, whatever file names the part."""
    method = Method.of("mine", "w8a8_tensor", optimizer="sorted", calibrator="toward")
    model = Block()
    outcome = segquant.quantize_with_outcome_(model, method, block_batches(4, seed=1))
    save_quantized(model, tmp_path / "model", outcome)
    write_plan(tmp_path / "plan.json", method, [])
    assert read_plan(tmp_path / "plan.json") == method.changed(name="plan")
    code = """
import sys
from pathlib import Path
from segquant import load_quantized, read_outcome
from segquant.method.plan_file import read_plan
from tests.segquant.support import Block
folder = Path(sys.argv[1])
for call in (lambda: load_quantized(folder / "model", Block()), lambda: read_outcome(folder / "model"),
             lambda: read_plan(folder / "plan.json")):
    try:
        call()
    except ValueError as error:
        print(error)
assert "mine" not in sys.modules
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=root,
        env={"PYTHONPATH": f"{root}:{package}", "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(
        "which is not registered here; import the package that defines it" in x for x in lines
    )
    assert "transform 'flip'" in lines[0] and "method 'mine' was made with optimizer 'sorted'" in lines[1]


def test_names_are_unique_and_parts_are_parts() -> None:
    with pytest.raises(QuantizationError, match="there is a calibrator 'gptq' already"):
        segquant.register(type("Gptq", (segquant.Calibrator,), {"name": "gptq"}))
    with pytest.raises(QuantizationError, match="has no name"):
        segquant.register(type("Nameless", (segquant.Range,), {}))
    with pytest.raises(QuantizationError, match="is no part that can be registered"):
        segquant.register(dict)
    with pytest.raises(QuantizationError, match="unknown calibrator 'gpqt'; nearest: gptq"):
        Method.of("m", "w8a8", calibrator="gpqt")
    with pytest.raises(ValueError, match="calibrator='gptq' is no calibrator; give a member"):
        Method("m", segquant.PRECISIONS["w8a8"], calibrator="gptq")  # type: ignore[arg-type]
