"""The `triton` backend without a GPU: kernels in the interpreter, compiled for GPUs that are not here, refusals."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import segquant
from segquant import QuantizationError, QuantScheme, QuantSpec, Segments, presets
from segquant.kernels.runs import Run, runs_of
from segquant.kernels.triton import operators
from segquant.kernels.triton.backend import Triton
from segquant.kernels.triton.plan import FEW, MANY, SOME, TILES, Tile, class_of, cut_of, tiles_for
from tests.segquant.kernels.layouts import layer_of
from tests.segquant.support import Block, block_batches

KERNELS = Path(__file__).with_name("triton_kernels.py")


def in_process(environment: dict[str, str], *options: str) -> None:
    pytest.importorskip("triton")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", str(KERNELS), "-q", "-x", "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        command, env={**inherited, **environment}, cwd=KERNELS.parents[3], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


ON_A_CPU = {operators.INTERPRETED: "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def test_kernels_are_the_reference_in_the_interpreter() -> None:
    in_process(ON_A_CPU, "-m", "not slow")


@pytest.mark.slow
def test_every_layout_is_the_reference_in_the_interpreter() -> None:
    in_process(ON_A_CPU, "-m", "slow")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_kernels_are_the_reference_on_a_gpu() -> None:
    in_process({operators.INTERPRETED: "0"})


INSTRUCTIONS = {(8, 0): "mma.sync", (8, 9): "mma.sync", (9, 0): "wgmma.mma_async", (12, 0): "mma.sync"}
SHARED_KB = {(8, 0): 163, (8, 9): 99, (9, 0): 227, (12, 0): 99}
"""That a program may take."""
SPILLED = 64
"""Bytes of a thread that may go to memory."""
FORMS: dict[str, dict[str, Any]] = {
    "w8a8": {"pieces": (1536,), "dual": (0,), "groups": (1536,), "signs": 0, "bits": 8},
    "dual": {"pieces": (1536,), "dual": (1,), "groups": (1536,), "signs": 1, "bits": 8},
    "zero_point": {"pieces": (1536,), "dual": (1,), "groups": (1536,), "signs": 2, "bits": 8},
    "pieces": {"pieces": (768, 768), "dual": (1, 0), "groups": (768, 768), "signs": 1, "bits": 8},
    "w4a8": {"pieces": (1536,), "dual": (1,), "groups": (32,) * 48, "signs": 1, "bits": 4},
    "w4a4": {"pieces": (64,) * 24, "dual": (0,) * 24, "groups": (64,) * 24, "signs": 0, "bits": 4},
}


def compiled(
    kernel: Any, constants: dict[str, Any], kinds: dict[str, str], capability: tuple[int, int], tile: Tile
) -> Any:
    """A kernel for a GPU that need not be here; pointers and sizes are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    plain = [name for name in names if name not in constants]
    signature = {name: kinds.get(name, "i32") if name in plain else "constexpr" for name in names}
    counts = ("rows", "pieces", "groups", "runs", "rows_class")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in plain if name not in counts}
    fixed = {(names.index(name),): value for name, value in constants.items()}
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(ASTSource(kernel, signature, fixed, aligned), target=target, options=options)


def product_for(form: dict[str, Any], capability: tuple[int, int], tile: Tile) -> Any:
    from segquant.kernels.triton.kernels import multiply

    cut, lifted = cut_of(form["pieces"], form["dual"], form["groups"]), form["signs"] == 2
    constants = {
        "RUNS": cut.kind, "RUN": cut.equal, "GROUP": form["groups"][0], "PIECE": form["pieces"][0],
        "RUN_STEP": cut.step, "SHARED": cut.shared, "ALIGN": cut.align, "SIGNS": form["signs"],
        "SPLIT": form["signs"] == 1, "LIFTED": lifted, "BITS": form["bits"], "BIAS": True, "BESIDE": False,
        "BLOCK_M": tile.rows, "BLOCK_N": tile.outputs, "BLOCK_K": tile.step, "BAND": 8, "beside": None,
    }  # fmt: skip
    kinds = dict.fromkeys(("first", "second", "weight_scale", "bias"), "*fp32")
    kinds |= {"codes": "*i8", "weight": "*i8" if form["bits"] == 8 else "*u8", "table": "*i32", "out": "*bf16"}
    if lifted:
        kinds["sums"] = "*i32"
    else:
        constants["sums"] = None
    return compiled(multiply, constants, kinds, capability, tile)


def spilled(made: Any, capability: tuple[int, int], folder: Path) -> int:
    """Bytes of registers that ptxas keeps in memory."""
    from triton.backends import nvidia

    (folder / "kernel.ptx").write_text(made.asm["ptx"])
    name = "ptxas" if capability < (10, 0) else "ptxas-blackwell"
    assembler = Path(nvidia.__file__).parent / "bin" / name
    arch = re.findall(r"\.target (\w+)", made.asm["ptx"])[0]
    command = [assembler, "-v", f"--gpu-name={arch}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.findall(r"(\d+) bytes spill stores", said)[0])


def check_form(form: str, capability: tuple[int, int], tile: Tile, folder: Path) -> None:
    made = product_for(FORMS[form], capability, tile)
    instruction = INSTRUCTIONS[capability] if tile.rows >= 64 else "mma.sync"
    assert re.search(rf"{re.escape(instruction)}\S*\.s8\.s8", made.asm["ptx"]), (form, capability, tile)
    assert made.metadata.shared <= SHARED_KB[capability] * 1024, (form, capability, tile)
    assert spilled(made, capability, folder) <= SPILLED, (form, capability, tile)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    pytest.importorskip("triton")
    if operators.interpreted():
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_a_product_compiles_for_a_gpu_that_is_not_here(compiler: Path) -> None:
    check_form("dual", (9, 0), TILES[9, 0][SOME][0], compiler)


@pytest.mark.slow
@pytest.mark.parametrize("capability", INSTRUCTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_products_compile_for_every_gpu(form: str, capability: tuple[int, int], compiler: Path) -> None:
    own = FORMS[form]
    accumulators = 1 + (len(own["groups"]) > 1) + (own["signs"] == 1)
    for rows_class in (FEW, SOME, MANY):
        tiles = tiles_for(capability, rows_class, accumulators)
        check_form(form, capability, max(tiles, key=lambda tile: tile.held(accumulators)), compiler)


@pytest.mark.slow
@pytest.mark.parametrize("signs", [0, 1, 2])
def test_quantization_compiles(signs: int, compiler: Path) -> None:
    from segquant.kernels.triton.kernels import quantize

    kinds = dict.fromkeys(("smooth", "above", "below", "first", "second"), "*fp32")
    kinds |= {"x": "*bf16", "cuts": "*i32", "codes": "*i8"}
    for static in (False, True):
        constants: dict[str, Any] = {
            "top": 127.0, "SMOOTH": True, "STATIC": static, "SIGNS": signs, "BITS": 8, "ROWS": 2, "BLOCK": 2048,
            "ALIGN": 16,
        }  # fmt: skip
        made = compiled(quantize, constants, kinds, (9, 0), Tile(2, 2048, 0, 4, 2))
        assert spilled(made, (9, 0), compiler) == 0 and "div.rn.f32" in made.asm["ptx"]


def test_columns_are_cut_into_runs() -> None:
    assert runs_of((4, 8), (0, 1), (6, 6)) == (Run(0, 4, 0, 0, 0), Run(4, 6, 0, 1, 1), Run(6, 12, 1, 1, 1))
    assert cut_of((96,), (1,), (96,)).kind == 0
    equal = cut_of((64, 64), (0, 0), (32,) * 4)
    assert (equal.kind, equal.equal, equal.step, equal.align) == (1, 32, 32, 16)
    assert cut_of((48, 48), (0, 0), (24,) * 4).step == 32
    for listed in (
        cut_of((64, 32), (0, 0), (64, 32)),
        cut_of((64, 64), (0, 1), (64, 64)),
        cut_of((256,) * 2, (0, 0), (256,) * 2),
    ):
        assert (listed.kind, listed.equal) == (2, 0)


def test_every_gpu_and_layout_has_tiles() -> None:
    assert [class_of(rows) for rows in (1, 16, 17, 128, 129, 10**6)] == [FEW, FEW, SOME, SOME, MANY, MANY]
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)):
        for rows_class in (FEW, SOME, MANY):
            for accumulators in (1, 2, 3):
                assert tiles_for(capability, rows_class, accumulators)


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("w4a16", "multiplies integers, and the layer's input stays in float"),
        ("fp8", "multiplies integers, and fp8 has none"),
        (
            QuantScheme(QuantSpec("int4", "channel"), QuantSpec("fp6_e2m3")),
            "multiplies integers, and fp6_e2m3 has none",
        ),
        ("mxint8", "takes scales of inputs in float32, and these are e8m0"),
        (
            QuantScheme(QuantSpec("int4", "group", 3), QuantSpec("int8", "token", dynamic=True)),
            "reads 4-bit codes by whole bytes, and a group or input piece starts within one",
        ),
        ("w8a8", "needs an NVIDIA GPU, and the layer is on cpu: 'cpu' and 'reference' run there"),
    ],
)
def test_what_it_cannot_run_is_said(scheme: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(operators.INTERPRETED, raising=False)
    operators.why_not_exact.cache_clear()
    assert Triton().why_not(layer_of(scheme, Segments(), (192, 8)).layout, torch.device("cpu")) == reason


def test_a_gpu_that_is_too_old_and_a_package_that_is_not_there_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    operators.why_not_exact.cache_clear()
    if "triton" in sys.modules or pytest.importorskip("triton"):
        assert operators.why_not_exact(device) == "needs a GPU of compute capability 8.0, and this one has 7.5"
    monkeypatch.setitem(sys.modules, "triton", None)
    operators.why_not_exact.cache_clear()
    reason = operators.why_not_exact(device)
    assert reason is not None and reason.startswith("needs the package triton, which cannot be imported (")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    operators.why_not_exact.cache_clear()
    assert (
        operators.why_not_exact(device)
        == "needs an NVIDIA GPU, and this is a ROCm build of torch: 'reference' runs there"
    )
    operators.why_not_exact.cache_clear()


def test_asked_for_on_a_cpu_the_nearest_that_works_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(operators.INTERPRETED, raising=False)
    operators.why_not_exact.cache_clear()
    model = Block()
    segquant.quantize_(model, presets.rtn("w8a8"), block_batches(2, seed=1))
    with pytest.raises(QuantizationError, match="layer is on cpu: 'cpu' and 'reference' run there.*name a fallback"):
        segquant.set_backend_(model, "triton")
    model.up.backend = Triton()
    with pytest.raises(QuantizationError, match="backend 'triton' needs an NVIDIA GPU"):
        model(**block_batches(1, seed=1)[0])
