"""ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from segquant.deploy.onnx.manifest import Manifest
from segquant.deploy.run.engine import Array, Engine
from segquant.deploy.run.probe import is_exact, probe_input, saturating_model
from segquant.errors import QuantizationError, first_line, nearest

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXACT = "session.x64quantprecision"
"""Makes weights unsigned while a session starts, whose products are exact on CPUs without VNNI."""
INTEGER = ("MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm",
           "DynamicQuantizeMatMul")  # fmt: skip
FLOAT = ("MatMul", "Gemm", "FusedGemm", "FusedMatMul", "Conv", "FusedConv")


class Ort(Engine):
    """A session on one device.

    Raises:
        QuantizationError: the device is not there, the file cannot be run, or its products would saturate here.
    """

    name: ClassVar[str] = "ort"

    def __init__(self, path: Path, manifest: Manifest, device: str = "cpu", threads: int | None = None) -> None:
        import onnxruntime  # put off: an extra that not everybody installs

        self._path, self._runtime = path, onnxruntime
        self._provider = _provider(device, onnxruntime.get_available_providers())
        self._threads = threads
        self._entries: dict[str, str] = {}
        self.remark = ""
        if device == "cpu" and not manifest.every_cpu and not signed_products_are_exact():
            self._entries[EXACT] = "1"
            self.remark = "this CPU has no VNNI: weights were made unsigned, since signed ones would saturate"
        self._session = self._started()

    def _started(self, dump: str | None = None) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if dump is not None:
            options.optimized_model_filepath = dump
        for key, value in self._entries.items():
            options.add_session_config_entry(key, value)
        try:
            return self._runtime.InferenceSession(str(self._path), options, providers=[self._provider])
        except Exception as error:  # of a module of its own, without a common base
            if self._entries:
                raise QuantizationError(
                    f"{self._path}: signed weights saturate on this CPU, which has no VNNI, and ONNX Runtime does not "
                    "make these unsigned; export with profile='ort', every_cpu=True"
                ) from error
            raise QuantizationError(f"ONNX Runtime does not take {self._path}: {first_line(error)}") from error

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        found: list[Array] = self._session.run(None, dict(feeds))
        return found

    def products(self) -> dict[str, int]:
        import onnx  # put off as above

        with tempfile.TemporaryDirectory() as folder:
            dump = Path(folder) / "optimized.onnx"
            self._started(str(dump))
            nodes = onnx.load(dump, load_external_data=False).graph.node
        words: Counter[str] = Counter()
        for node in nodes:
            if node.op_type in INTEGER:
                words["int8"] += 1
            elif node.op_type == "MatMulNBits":
                words["4-bit blocks"] += 1
            elif node.op_type in FLOAT:
                words["float32"] += 1
        return dict(words)


def _provider(device: str, available: list[str]) -> str:
    wanted = PROVIDERS.get(device)
    there = [name for name, provider in PROVIDERS.items() if provider in available]
    if wanted is None or wanted not in available:
        raise QuantizationError(
            f"ONNX Runtime has no device {device!r} here; {nearest(device, there)}"
            + ("; for a GPU install onnxruntime-gpu" if device == "cuda" else "")
        )
    return wanted


@lru_cache(maxsize=1)
def signed_products_are_exact() -> bool:
    """Whether products of unsigned inputs and signed weights do not saturate here."""
    import onnxruntime  # put off as above

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(saturating_model(), options, providers=[PROVIDERS["cpu"]])
    return is_exact(session.run(None, {"x": probe_input()})[0])
