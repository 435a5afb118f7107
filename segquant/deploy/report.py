"""What became of each layer in another tool's file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from segquant.errors import QuantizationError

RESTS = ("refuse", "float")
NAMED = 3
"""Layers that a refusal names."""


@dataclass(frozen=True)
class ExportedLayer:
    """One quantized layer in the file.

    Attributes:
        form: "int8" or "float".
        note: why it is float, or what differs from the model; "" if nothing.
        bytes: of its weight and scales in the file.
    """

    layer: str
    form: str
    note: str
    bytes: int


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote; `print(report)` shows it as a table."""

    path: Path
    layers: tuple[ExportedLayer, ...]

    @property
    def float_bytes(self) -> int:
        """Bytes of quantized layers that the file holds in float."""
        return sum(layer.bytes for layer in self.layers if layer.form == "float")

    def __str__(self) -> str:
        wide = max((len(layer.layer) for layer in self.layers), default=5)
        lines = [f"{'layer':{wide}}  form   {'bytes':>12}  note"]
        lines += [f"{row.layer:{wide}}  {row.form:5}  {row.bytes:>12,}  {row.note}".rstrip() for row in self.layers]
        counts = {form: sum(row.form == form for row in self.layers) for form in ("int8", "float")}
        total = sum(row.bytes for row in self.layers)
        lines.append(
            f"{counts['int8']} layers in int8, {counts['float']} in float ({self.float_bytes:,} of {total:,} bytes): "
            f"{self.path}"
        )
        return "\n".join(lines)


def refuse_unfit(reasons: Mapping[str, str], rest: str, tool: str) -> None:
    """Raise, naming the layers that do not fit, unless `rest` is "float"."""
    if rest not in RESTS:
        raise QuantizationError(f"rest={rest!r}; give 'refuse', or 'float' to keep what does not fit in float")
    if not reasons or rest == "float":
        return
    first = [f"{name} ({reason})" for name, reason in list(reasons.items())[:NAMED]]
    more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
    raise QuantizationError(
        f"{tool} cannot hold {', '.join(first)}{more}; quantize for it, or keep such layers in float by rest='float'"
    )


def size_of(tensors: Iterable[object]) -> int:
    """Bytes of the tensors among these."""
    found = (tensor for tensor in tensors if hasattr(tensor, "element_size"))
    return sum(tensor.numel() * tensor.element_size() for tensor in found)  # type: ignore[attr-defined]
