"""AdaRound as a calibrator; here because it runs the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from segquant.calibrators.nearest import Nearest
from segquant.calibrators.reconstruction import Reconstruction
from segquant.checks import check_fields
from segquant.keep import Keeper
from segquant.modules.calls import Progress
from segquant.reconstruct.blocks import reconstruct_
from segquant.registry import register


@register
@dataclass(frozen=True)
class AdaRound(Nearest):
    """Round to nearest, then learn the rounding block by block (see `reconstruct.blocks`)."""

    reconstruction: Reconstruction = Reconstruction()
    name: ClassVar[str] = "adaround"
    needs: ClassVar[frozenset[str]] = frozenset({"second_pass"})
    whole_model: ClassVar[frozenset[str]] = frozenset({"reconstruction"})

    def __post_init__(self) -> None:
        check_fields(self)

    def refine_(
        self,
        model: nn.Module,
        solved: Mapping[int, nn.Module],
        batches: Iterable[Any],
        *,
        learn: frozenset[int],
        seed: int,
        progress: Progress | None,
        keep: Keeper | None = None,
    ) -> None:
        reconstruct_(model, solved, batches, self.reconstruction, learn=learn, seed=seed, progress=progress, keep=keep)
