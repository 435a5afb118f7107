"""OpenVINO."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

from segquant.deploy.onnx.attention import CALL, SCORES
from segquant.deploy.onnx.manifest import Manifest
from segquant.deploy.run.engine import Array, Engine, cause
from segquant.deploy.run.probe import is_exact, probe_input, saturating_model
from segquant.deploy.run.signal_stack import kept_signal_stack
from segquant.errors import QuantizationError, nearest

GIVEN_INPUTS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Else CPUs with VNNI round inputs to 8 bits in groups of 32 where weights alone are codes."""
WITHOUT_INTEGERS = {"LP_TRANSFORMS_MODE": "NO"}
"""Weights stay codes, products are float."""
BYTES = ("u8", "i8")
PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
ATTENTION = re.compile(rf"(?:^|,)([^,]*(?:{CALL}\d+)?)/{SCORES}/M(?:ul|atMul)_")
"""In the names of what runs queries times keys of which attention; only of files with codes of these."""


class OpenVino(Engine):
    """A compiled model on one device.

    Args:
        bfloat16: let what is not quantized run in bfloat16.
        fixed: None: compile for the sizes of the first call, with which calls are faster, and for any sizes as soon as
            others come; True: for the sizes of a call, anew where they change; False: for any sizes. Outputs differ by
            roundings. A call before which something is compiled takes seconds.

    Raises:
        QuantizationError: the device is not there, or the file cannot be run.
    """

    name: ClassVar[str] = "openvino"

    @kept_signal_stack()
    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        device: str = "cpu",
        threads: int | None = None,
        bfloat16: bool = False,
        fixed: bool | None = None,
    ) -> None:
        import openvino  # put off: an extra that not everybody installs

        if not isinstance(bfloat16, bool) or not isinstance(fixed, bool | None):
            given = f"bfloat16={bfloat16!r} and fixed={fixed!r} are"
            raise QuantizationError(f"{given} given; give True or False, or fixed=None for what calls tell")
        core = openvino.Core()
        kind = device.upper()
        if kind not in core.available_devices:
            there = [name.lower() for name in core.available_devices]
            raise QuantizationError(f"OpenVINO has no device {device!r} here; {nearest(device, there)}")
        self.remark, config = "", {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", **GIVEN_INPUTS}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        integers = "int8" in (*manifest.layers.values(), *manifest.attention.values())
        if kind == "CPU" and integers and not products_are_exact():
            config |= WITHOUT_INTEGERS
            self.remark = (
                "this CPU has no VNNI, on which OpenVINO's integer products saturate: its weights stay codes, its "
                "products are float32"
            )
        self._path, self._fixed, self._sizes = path, fixed, dict[str, list[int]]()
        self._compile = partial(core.compile_model, device_name=kind, config=config)
        self._free: Any = None
        self._compiled: Any = None
        self._turn = threading.Lock()  # there is one request, whose outputs its next call overwrites
        with self._told():
            if fixed is False:
                self._start(str(path))
            else:
                self._free = core.read_model(path)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise QuantizationError(f"OpenVINO does not take {self._path}: {cause(error)}") from error

    def _start(self, model: Any) -> None:
        self._compiled = self._compile(model)
        self._request: Any = self._compiled.create_infer_request()

    def _fit(self, feeds: Mapping[str, Array]) -> None:
        sizes = {name: list(array.shape) for name, array in feeds.items()}
        if sizes == self._sizes:
            return
        others = bool(self._sizes)
        self._compiled, self._request, self._sizes = None, None, {}  # two at once would take twice the memory
        if self._fixed is None and others:
            self._start(self._free)
            self._free = None
            return
        model = self._free.clone()
        model.reshape(sizes)
        self._start(model)
        self._sizes = sizes

    @kept_signal_stack()
    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        with self._turn:
            if self._free is not None:
                self._fit(feeds)
            found = self._request.infer(dict(feeds), share_inputs=True)
            return [array.copy() for array in found.values()]  # the request's own memory

    @kept_signal_stack()
    def products(self) -> dict[str, int]:
        with self._turn:
            if self._compiled is None:
                self._start(self._free.clone())
            operations = self._compiled.get_runtime_model().get_ordered_ops()
        counts, attention = Counter[str](), dict[str, bool]()
        for operation in operations:
            told = operation.get_rt_info()
            about = [str(told[key].value) for key in ("layerType", "runtimePrecision", "primitiveType")]
            for name in ATTENTION.findall(str(told["originalLayersNames"].value)):
                attention[name] = attention.get(name, False) or about[1] in BYTES
            if about[0] in PRODUCTS and not ATTENTION.search(str(told["originalLayersNames"].value)):
                counts[_word(about[1], about[2])] += 1
        counts.update(f"{'int8' if coded else 'float32'} attention" for coded in attention.values())
        return dict(counts)


def _word(precision: str, kernel: str) -> str:
    if precision in BYTES and not kernel.endswith("I8"):  # codes of weights alone, made floats in the kernel
        return "float32"
    return {"u8": "int8", "i8": "int8", "i4": "4-bit blocks", "u4": "4-bit blocks"}.get(precision, "float32")


@lru_cache(maxsize=1)
@kept_signal_stack()
def products_are_exact() -> bool:
    """Whether integer products on the CPU do not saturate."""
    import openvino  # put off as above

    core = openvino.Core()
    model = core.read_model(saturating_model())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return is_exact(next(iter(compiled({"x": probe_input()}).values())))
