"""`load_exported`: an exported file in the place of a float denoiser."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from segquant.checks import checked
from segquant.deploy.onnx.manifest import DATA, KEY, MODEL, Manifest
from segquant.deploy.onnx.stamp import is_as_stamped
from segquant.deploy.run.denoiser import ExportedDenoiser
from segquant.deploy.run.openvino import OpenVino
from segquant.deploy.run.ort import Ort
from segquant.errors import QuantizationError, first_line, nearest
from segquant.files import sha256_of

logger = logging.getLogger(__name__)
ENGINES: dict[str, Any] = {"ort": Ort, "openvino": OpenVino}
PACKAGES = {"ort": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}


@checked(options="")
def load_exported(
    directory: str | Path, engine: str = "ort", *, device: str = "cpu", threads: int | None = None, **options: Any
) -> ExportedDenoiser:
    """A module with the signature, config and dtype of the denoiser that was exported to `directory`.

        pipe.transformer = load_exported("exported", "openvino")

    Args:
        engine: "ort" (ONNX Runtime) or "openvino".
        threads: None: as many as the engine takes by itself.
        options: of OpenVINO: `bfloat16=True` runs what is not quantized in bfloat16. It compiles for the sizes of the
            first call, which is faster, and for any sizes as soon as others come; `fixed=True`: for the sizes of a
            call, anew where they change; `fixed=False`: for any sizes from the start. Compiling takes seconds.

    Raises:
        QuantizationError: the package or the device is not there, the folder holds no export, it is damaged or lacks
            its weights, or it is for another engine.
    """
    if engine not in ENGINES:
        raise QuantizationError(f"no engine {engine!r}; {nearest(engine, ENGINES)}")
    if threads is not None and threads < 1:
        raise QuantizationError(f"threads is {threads}; give at least 1, or None for as many as the engine takes")
    missing = [name for name in PACKAGES[engine] if importlib.util.find_spec(name) is None]
    if missing:
        needed = " and ".join(missing)
        raise QuantizationError(f"engine {engine!r} needs {needed}; run pip install '.[deploy]' in a clone of segquant")
    path = Path(directory) / MODEL
    manifest = read_manifest(path)
    if manifest.profile != engine:
        raise QuantizationError(
            f"{path} was exported for {manifest.profile}; export it with profile={engine!r}, or give "
            f"engine={manifest.profile!r}"
            if manifest.profile in ENGINES
            else f"{path} was exported for {manifest.profile}, which nothing here runs; export it with "
            f"profile={engine!r}"
        )
    try:
        found = ENGINES[engine](path, manifest, device=device, threads=threads, **options)
    except TypeError as error:
        raise QuantizationError(f"engine {engine!r} does not take {', '.join(options)}: {first_line(error)}") from error
    if found.remark:
        logger.warning("%s", found.remark)
    return ExportedDenoiser(found, manifest)


def read_manifest(path: Path) -> Manifest:
    """Of an exported file.

    Raises:
        QuantizationError: it is missing, damaged, not ours, or lacks its weights.
    """
    import onnx  # put off: an extra that not everybody installs
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise QuantizationError(f"{path} is missing; give the folder that export_onnx wrote")
    try:
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, OSError) as error:
        raise QuantizationError(f"{path} is damaged ({first_line(error)}); export or copy it again") from error
    texts = {entry.key: entry.value for entry in model.metadata_props}
    manifest = Manifest.loaded(texts.get(KEY), str(path))
    _check_graph(path, model.graph, manifest)
    if manifest.sha256 and not is_as_stamped(content, manifest.sha256):
        raise QuantizationError(f"{path} is not as it was written (its sha256 is another); export or copy it again")
    if manifest.data:
        _check_data(path, manifest)
    return manifest


def _check_data(path: Path, manifest: Manifest) -> None:
    data = path.with_name(DATA)
    size = data.stat().st_size if data.is_file() else 0
    if size != manifest.data:
        state = f"has {size} bytes instead of {manifest.data}" if size else "is missing"
        raise QuantizationError(f"{data} {state}; it holds the weights of {path}: copy the whole folder")
    if data.resolve().parent != path.parent.resolve():
        raise QuantizationError(
            f"{data} is a link out of its folder, which engines do not follow; copy the folder with the files "
            "that its links lead to (cp -rL)"
        )
    if manifest.data_sha256 and sha256_of(data) != manifest.data_sha256:
        raise QuantizationError(
            f"{data} is not as it was written (its sha256 is another); it holds the weights of {path}: export or copy "
            "the whole folder again"
        )


def _check_graph(path: Path, graph: Any, manifest: Manifest) -> None:
    """The graph has the inputs and outputs that the manifest tells; engines would say so at the first call."""
    from onnx import helper  # put off as above

    told = {each.name.replace(".", "_"): (each.dtype, len(each.dimensions)) for each in manifest.inputs}
    kinds = {each.name: each.type.tensor_type for each in graph.input}
    found = {
        name: (helper.tensor_dtype_to_np_dtype(kind.elem_type).name, len(kind.shape.dim))
        for name, kind in kinds.items()
    }
    if found != told or len(graph.output) != len(manifest.outputs):
        other = next((name for name in (*told, *found) if told.get(name) != found.get(name)), "its outputs")
        raise QuantizationError(
            f"{path} is damaged: what it says of {other} is not what its graph has; export or copy it again"
        )
