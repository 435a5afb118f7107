"""What an export tells of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the model's file.
        layers: each quantized layer's form: "int8", "4-bit blocks", "8-bit blocks" (TensorRT has no tensor for
            4 bits there), "weights", "fp8", or "float" by rest="float".
        attention: each attention's form if attention="int8" was asked for: "int8", or "float" where it is computed
            without F.scaled_dot_product_attention.
        fixed: dimensions that only the example's size fits, though `dynamic` was asked for.
        bytes: of all files; `float_bytes` of them in layers left in float.
    """

    path: Path
    profile: str
    layers: dict[str, str]
    fixed: tuple[str, ...]
    bytes: int
    float_bytes: int
    attention: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.path}: {self.bytes / 1e6:.1f} MB for {self.profile}; quantized layers: {_counted(self.layers)}"
        if self.attention:
            text += f"; attention: {_counted(self.attention)}"
        if self.float_bytes:
            text += f"; {self.float_bytes / 1e6:.1f} MB of them in layers left in float"
        return text + (f"; fixed: {', '.join(self.fixed)}" if self.fixed else "")


def _counted(forms: Mapping[str, str]) -> str:
    return ", ".join(f"{count} {form}" for form, count in Counter(forms.values()).items())
