"""Calibrator: how a weight is put on its grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from segquant.errors import QuantizationError
from segquant.modules.calls import Progress


@dataclass(frozen=True)
class Inputs:
    """What is known of a branch's input, in the quantized space.

    Args:
        gram: XᵀX [in, in], float64, shrunk towards its diagonal; with need "gram".
        rows: a sample [n, in]; with need "stats".
    """

    gram: Tensor | None = None
    rows: Tensor | None = None


class Calibrator(Protocol):
    """How a weight is rounded, given the scales of its grid.

    To add one: derive a frozen dataclass from this class, decorate it with `segquant.register`, give it a `name`,
    `round`, and what it `needs`; `Method.of(…, calibrator="mine")` takes it. Its fields are its settings.

        @segquant.register
        @dataclass(frozen=True)
        class Down(segquant.Calibrator):
            name: ClassVar[str] = "down"
            def round(self, weight, scale, dtype, prepared):
                return functional.fake_quantize(weight - scale / 2, scale, dtype)
    """

    slot: ClassVar[str] = "calibrator"
    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Of "stats" (sampled rows), "gram" (XᵀX), "second_pass" (`refine_`)."""
    whole_model: ClassVar[frozenset[str]] = frozenset()
    """Fields that hold for the whole model: no override may change them."""

    def prepare(self, inputs: Inputs) -> Any:
        """What `round` needs of the input, whatever the weight."""
        return inputs

    def round(self, weight: Tensor, scale: Tensor, dtype: str, prepared: Any) -> Tensor:
        """The weight on its grid.

        Args:
            weight: float [rows, in], in the quantized space; not to be modified.
            scale: positive, broadcastable to the weight.
            prepared: from `prepare`.

        Returns:
            dequantized [rows, in]; `functional.quantize(result, scale, dtype)` gives its codes.
        """
        ...

    def refine_(
        self,
        model: nn.Module,
        solved: Mapping[int, nn.Module],
        batches: Iterable[Any],
        *,
        learn: frozenset[int],
        seed: int,
        progress: Progress | None,
    ) -> None:
        """Change the codes of solved layers, with the float model and all data; needs "second_pass".

        Args:
            solved: QuantLinear by the id of its float layer.
            learn: keys of `solved` that have this calibrator.
        """
        raise QuantizationError(f"calibrator {self.name!r} needs a second pass and has no refine_; define it")
