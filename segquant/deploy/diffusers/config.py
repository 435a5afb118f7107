"""SegQuantConfig: `quantization_config` of a model."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from segquant.arguments import GivenMethod, method_of
from segquant.errors import QuantizationError
from segquant.method.spec import Method
from segquant.serialize.manifest import QUANT_METHOD


class QuantMethod(StrEnum):  # diffusers reads `.value`, and looks it up as a string
    """As diffusers' QuantizationMethod."""

    SEGQUANT = QUANT_METHOD


class SegQuantConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How to quantize a float model on load; or, in config.json, how a saved one was.

    Args:
        method: a `Method`, the name of a preset, or {"name": …, settings}.
        precision: the preset's, where `method` is a name.
        calibration: a file of `save_calibration`; methods that need weights alone do without.
        saved: what config.json has beside `quant_method`; nobody writes that by hand.

    Raises:
        QuantizationError: no such method.
    """

    def __init__(
        self,
        method: GivenMethod | None = None,
        precision: str | None = None,
        calibration: str | Path | None = None,
        saved: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        rest.pop("quant_method", None)
        self.quant_method = QuantMethod.SEGQUANT
        self.saved: dict[str, Any] = {**(saved or {}), **rest}
        self.calibration = None if calibration is None else str(calibration)
        if precision is not None and isinstance(method, str):
            method = {"name": method, "precision": precision}
        elif precision is not None:
            raise QuantizationError("precision goes with the name of a preset; put it into the method that is given")
        self.method: Method | None = None if method is None else method_of(method)
        if self.method is None and "layers" not in self.saved:
            unknown = f"{', '.join(self.saved)}: no setting of SegQuantConfig; " if self.saved else ""
            raise QuantizationError(
                f"{unknown}a SegQuantConfig names a method, for example method='segquant_a', precision='w8a8', "
                "calibration='batches.safetensors'"
            )
        if self.method is not None and self.saved:
            raise QuantizationError(
                f"SegQuantConfig takes no {', '.join(self.saved)}; settings of a method belong into it, for example "
                "method={'name': 'segquant_a', 'precision': 'w8a8', 'alpha': 0.5}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        if self.saved:
            return {"quant_method": self.quant_method.value, **self.saved}
        assert self.method is not None
        asked = {"method": self.method.to_dict(), "calibration": self.calibration}
        return {"quant_method": self.quant_method.value, **asked}

    def to_diff_dict(self) -> dict[str, Any]:
        """Like `to_dict`: diffusers asks for it to print a config."""
        return self.to_dict()
