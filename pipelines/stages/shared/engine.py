"""The engine of a run (`run=…`): what computes the denoiser while pictures are sampled."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from segquant.deploy.onnx.forms import FLOAT, profile_of, why_no_scheme
from segquant.deploy.onnx.manifest import Dimension, Input
from segquant.errors import QuantizationError
from segquant.kernels.cpu.operators import why_not_exact
from segquant.kernels.integers import why_no_codes, why_not_scales
from segquant.layers.attention import TORCH, Attention
from segquant.layers.backends import AUTO as FASTEST
from segquant.layers.backends import backends, set_backend_
from segquant.method.spec import Method
from segquant_bench.pipelines.config.auto_engine import own_layers, why_no_kernels
from segquant_bench.pipelines.config.backend import find_backend
from segquant_bench.pipelines.config.engine import AUTO, COMPILE, CPU, CUDA, EXPORTED, KERNELS, OPENVINO, EngineConfig
from segquant_bench.pipelines.config.schema import REFERENCE
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime.digests import file_digest
from segquant_bench.pipelines.runtime.meaning import code_digest, source_files
from segquant_bench.pipelines.runtime.provenance import versions_of
from segquant_bench.pipelines.sampling.first_step import first_step
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared.inputs import prompt_inputs
from segquant_bench.pipelines.stages.shared.quantized import twin
from segquant_bench.pipelines.stages.shared.segments import some_batches

log = logging.getLogger(__name__)

CALIBRATE = "calibrate"
"""The stage with inputs of the denoiser."""
BATCHES = 8
"""Of calibration inputs, over which ranges of attention are taken."""
EXPORT = "exported"
"""The folder of an exported denoiser."""
PACKAGES = {"ort": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
_TENSORRT = ", or profile='tensorrt'"
"""What the library advises, and no engine of a run is."""
CODE = ("segquant.kernels", "segquant.layers", "segquant.transforms", "segquant.numerics")
EXPORT_CODE = ("segquant.deploy.onnx", "segquant.deploy.run")
_ADVICE = {
    "name a fallback, for example fallback='reference'": "set run.fallback=reference",
    "leave strict out to run them by 'reference'": "set run.fallback=reference",
    "; leave it out": "; set run.attention=torch",
    "rest='float' leaves": "run.rest=float leaves",
    "every_cpu=True": "run.every_cpu=true",
}
"""What the library says to do, and how a run is told."""


@dataclass
class Placed:
    """The denoiser as its engine runs it.

    Attributes:
        layers: the kernel of each quantized layer; `reasons`: why a faster one does not run it.
        about: what else is to be known of the engine, for results.json.
    """

    module: nn.Module
    layers: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def engine_of(run: Run) -> EngineConfig:
    """The run's engine; of `run=auto`, the one that it is here."""
    if run.config.run.name != AUTO:
        return run.config.run
    return EngineConfig(CPU, fallback=REFERENCE) if why_reference(run) is None else EngineConfig(REFERENCE)


def why_reference(run: Run) -> str | None:
    """Why `run=auto` is the reference for this run on this machine; None where kernels run."""
    reason = why_no_kernels(run.config)
    if reason is not None:
        return reason
    if not isinstance(run.method, Method):
        return own_layers(run.config)
    if run.device != "cpu":
        return f"the model is on {run.device}, and the exact kernels are for the CPU"
    if not run.config.components and (reason := _why_no_codes(run.method)) is not None:
        return f"the CPU's exact kernel {reason}"
    missing = why_not_exact()
    return None if missing is None else f"the CPU's exact kernel {missing}"


def _why_no_codes(method: Method) -> str | None:
    """Why no layer can have integers or fp8; None where one may."""
    if not _is_of_one_scheme(method):
        return None
    return why_no_codes(method.scheme) or why_not_scales(method.scheme)


def check_engine(run: Run) -> None:
    """Refuse an engine that cannot run here, before anything is computed; say what `run=auto` is.

    Raises:
        PipelineError: its packages, the device or the dtype are missing.
    """
    engine, model = run.config.run.name, run.config.model
    if engine == AUTO and (reason := why_reference(run)) is not None:
        log.info("run=auto is run=reference: %s", one_line(reason))
    if engine == CUDA and not run.device.startswith("cuda"):
        raise PipelineError(f"run=cuda needs an NVIDIA GPU, and the model is on {run.device}; the nearest is run=cpu")
    if engine in (CPU, *EXPORTED) and run.device != "cpu":
        raise PipelineError(f"run={engine} runs on the CPU, and the model is on {run.device}; set model.device=cpu")
    if engine == CPU and run.config.run.fallback is None and (unable := why_not_exact()) is not None:
        raise PipelineError(f"run=cpu {unable}; the nearest is run=reference")
    _check_numbers(run)
    attention = run.config.run.attention
    if attention != TORCH and engine in EXPORTED and not run.has(CALIBRATE):
        raise PipelineError(
            f"run={engine} run.attention={attention} takes ranges from calibration inputs, and this run has none, "
            "since its denoiser is not quantized; set run.attention=torch"
        )
    if attention != TORCH and engine not in EXPORTED:
        unable = f"runs on the CPU, and the model is on {run.device}" if run.device != "cpu" else why_not_exact()
        if unable is not None:
            raise PipelineError(f"run.attention={attention} {unable}; the nearest is run.attention=torch")
    if engine not in EXPORTED:
        return
    missing = [name for name in PACKAGES[engine] if importlib.util.find_spec(name) is None]
    if missing:
        raise PipelineError(
            f"run={engine} needs {' and '.join(missing)}; run pip install '.[deploy]' in a clone of segquant"
        )
    if model.dtype != "float32":
        raise PipelineError(f"run={engine} computes in float32, and model.dtype={model.dtype}; set model.dtype=float32")


def _check_numbers(run: Run) -> None:
    """Refuse an engine that multiplies no such numbers, where no layer can have others."""
    engine, method = run.config.run, run.method
    if not isinstance(method, Method) or run.config.components or not _is_of_one_scheme(method):
        return
    if engine.name == CPU and engine.fallback is None and (reason := _why_no_codes(method)) is not None:
        raise PipelineError(f"run=cpu {reason}; set run.fallback=reference, or choose another precision")
    if engine.name in EXPORTED and engine.rest != FLOAT:
        reason = why_no_scheme(method.scheme, profile_of(engine.name))
        if reason is not None:
            raise PipelineError(f"run={engine.name}: {reason.replace(_TENSORRT, '')}; or set run.rest=float")


def _is_of_one_scheme(method: Method) -> bool:
    return not method.targets.overrides and method.budget is None and method.scheme.weight is not None


def engine_depends(run: Run) -> dict[str, Any]:
    """What an engine adds to what pictures depend on; empty for the reference."""
    engine = engine_of(run)
    if engine.name == REFERENCE:
        return {}
    exported = engine.name in EXPORTED
    native = (path.parent for _, path in source_files("segquant.kernels.cpu.build"))
    sources = sorted(path for folder in native for path in (folder / "native").glob("*") if path.is_file())
    return {
        "engine": engine.settings(),
        "code": code_digest(*CODE, *(EXPORT_CODE if exported else ())),
        "sources": [file_digest(path) for path in sources],
        "versions": versions_of(PACKAGES[engine.name]) if exported else {},
        "processor": torch.backends.cpu.get_cpu_capability(),  # which instructions round how
    }


def place(run: Run, denoiser: nn.Module, components: Mapping[str, nn.Module], folder: Path) -> Placed:
    """The denoiser as its engine runs it; an exported one is written to `folder`, or read from it if there.

    Args:
        denoiser: changed in place; the unquantized one is copied first.
        components: other quantized components, by the same kernels.

    Raises:
        PipelineError: the engine cannot run a layer; which, and why.
    """
    chosen = engine_of(run)
    engine = chosen.name
    own = twin(denoiser) if engine == COMPILE and denoiser is run.denoiser else denoiser
    modules = {"": own, **components}
    with _told(engine):
        if engine == REFERENCE:
            choice = find_backend(run.config.backend)
            return Placed(own, *_by_kernels(modules, choice.name, choice.fallback))
        if engine in EXPORTED:
            return _exported(run, own, components, folder / EXPORT)
        strict = engine in KERNELS and chosen.fallback is None
        name, fallback = (CPU, chosen.fallback) if engine == CPU else (FASTEST, None)
        strict = strict and name == FASTEST
        attention = cast(Attention, chosen.attention)
        placed = Placed(own, *_by_kernels(modules, name, fallback, strict=strict, attention=attention))
    if engine == COMPILE:
        placed.about["compiled"] = compile_(own)
        _warm(run, placed)
    return placed


@contextlib.contextmanager
def _told(engine: str) -> Iterator[None]:
    """What the library refuses, in the words of a command line."""
    try:
        yield
    except QuantizationError as error:
        sentence = one_line(error)
        for library, ours in ({"fallback=": "backend.fallback="} if engine == REFERENCE else _ADVICE).items():
            sentence = sentence.replace(library, ours)
        raise PipelineError(sentence) from error


def _by_kernels(
    modules: Mapping[str, nn.Module],
    name: str,
    fallback: str | None,
    *,
    strict: bool = False,
    attention: Attention = TORCH,
) -> tuple[dict[str, str], dict[str, str]]:
    """Kernels and reasons by layer; those of components begin with the component's name.

    Args:
        attention: the denoiser's; see `set_backend_`.
    """
    layers, reasons = {}, {}
    for part, module in modules.items():
        own = TORCH if part else attention
        if not backends(module) and own == TORCH:
            continue
        with contextlib.redirect_stdout(io.StringIO()):  # "auto" prints the table, which goes into results.json
            table = set_backend_(module, name, fallback, strict=strict, attention=own)
        for each in table:
            layer = f"{part}.{each.layer}" if part else each.layer
            layers[layer] = each.backend
            if each.reason:
                reasons[layer] = each.reason
    return layers, reasons


def compile_(model: nn.Module) -> dict[str, int]:
    """Let torch.compile make each block of the model's lists of blocks, else the whole; how many of which class."""
    lists = [child for child in model.children() if isinstance(child, nn.ModuleList)]
    blocks = [block for child in lists for block in child]
    found: dict[str, int] = {}
    for block in blocks:
        block.compile()
        found[type(block).__name__] = found.get(type(block).__name__, 0) + 1
    if not blocks:
        model.forward = torch.compile(model.forward)  # hooks stay outside
        found[type(model).__name__] = 1
    return found


@contextlib.contextmanager
def compiling(engine: str = COMPILE) -> Iterator[None]:
    """While compiled modules are called: blocks that differ are compiled one by one, and none silently runs eager.

    Raises:
        PipelineError: one cannot be compiled.
    """
    if engine != COMPILE:
        yield
        return
    import torch._dynamo  # put off: seconds

    try:
        with torch._dynamo.config.patch(recompile_limit=512, accumulated_recompile_limit=8192,
                                        fail_on_recompile_limit_hit=True):  # fmt: skip
            yield
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
        raise PipelineError(
            f"torch.compile cannot compile the denoiser ({one_line(error)[:300]}); it needs a C++ compiler; "
            "run=cpu and run=reference do without"
        ) from error


def _warm(run: Run, placed: Placed) -> None:
    """Compile before sampling."""
    calls = denoiser_calls(run)
    with compiling(), torch.no_grad(), counting_breaks(placed.about):
        for call in calls:
            placed.module(**call)


@contextlib.contextmanager
def counting_breaks(about: dict[str, Any]) -> Iterator[None]:
    """Adds "graph_breaks": at how many places of what is compiled meanwhile Python runs in between.

    Some tools' layers have so many that plain torch may be faster.
    """
    from torch._dynamo.utils import counters  # put off: seconds

    before = counters["graph_break"].total()
    yield
    about["graph_breaks"] = counters["graph_break"].total() - before


def denoiser_calls(run: Run) -> list[dict[str, Any]]:
    """Arguments of the denoiser's calls in the first step of the first batch, by the unquantized model."""
    model = run.config.model
    return first_step(
        run.pipeline, run.denoiser, list(run.dataset.evaluation), model.call.arguments(),
        seed=run.config.seed, batch_size=model.batch_size, inputs=prompt_inputs(run, "evaluation"),
    )  # fmt: skip


def _exported(run: Run, denoiser: nn.Module, components: Mapping[str, nn.Module], folder: Path) -> Placed:
    # Put off: extras that take seconds to import.
    from segquant.deploy.onnx.export import export_onnx
    from segquant.deploy.run import load_exported

    engine = run.config.run
    about: dict[str, Any] = {"threads": torch.get_num_threads()}
    example = denoiser_calls(run)[0]
    if not folder.is_dir():
        rest = engine.rest if backends(denoiser) else "float"
        log.info("writing the denoiser for %s", engine.name)
        coded: dict[str, Any] = {}
        if engine.attention != TORCH:
            coded = {"attention": engine.attention, "attention_batches": some_batches(run, BATCHES)}
        written = export_onnx(
            denoiser, folder, (), example, profile=engine.name, rest=rest, every_cpu=engine.every_cpu, **coded
        )
        log.info("%s", written)
    # a run's calls have the size of its batches, and of the last one
    options: dict[str, Any] = {"bfloat16": engine.bfloat16, "fixed": True} if engine.name == OPENVINO else {}
    module = load_exported(folder, engine.name, threads=torch.get_num_threads(), **options)
    _check_last_batch(run, module.manifest.inputs[0], example)
    with torch.no_grad():
        module(**example)  # compiled for these sizes, as it then runs: products for any sizes may differ
    about["products"], about["file_bytes"] = module.engine.products(), folder_bytes(folder)
    if module.engine.remark:
        about["remark"] = module.engine.remark
    layers = {name: f"{engine.name}: {form}" for name, form in module.manifest.layers.items()}
    layers |= {name: f"{engine.name}: attention {form}" for name, form in module.manifest.attention.items()}
    others, reasons = _by_kernels(components, REFERENCE, None)
    return Placed(module, {**layers, **others}, reasons, about)


def _check_last_batch(run: Run, first: Input, example: Mapping[str, Any]) -> None:
    """Refuse, before sampling, a file that takes the first batches and not the last, smaller one.

    Args:
        first: of the file's inputs.
        example: arguments of a call of the first batch.
    """
    batch, count = run.config.model.batch_size, len(run.dataset.evaluation)
    whole, last = min(batch, count), count % batch or min(batch, count)
    size = first.dimensions[0] if first.dimensions else Dimension("none", 1)
    if last == whole or all(size.allows(each * last) for each in (1, 2)):  # a row a picture, or two with guidance
        return
    rows = int(example[first.name].shape[0]) * last // whole
    if not size.allows(rows):
        raise PipelineError(
            f"run={run.config.run.name}: the exported denoiser takes batches of {size}, and the last of {count} "
            f"pictures has {rows}; set model.batch_size=1, or dataset.size to a multiple of {batch}"
        )


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
