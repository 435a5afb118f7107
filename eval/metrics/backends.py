from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant_bench.eval.errors import EvalError

Has = Callable[[int, int], bool]
"""Whether the batch that begins with picture `start`, of so many, is one's own."""
FID_EXTRACTORS = ("auto", "inception", "effnet_lite0")
LPIPS_TRUNKS = ("alex", "vgg", "squeeze")


@dataclass(frozen=True)
class Network:
    """A network that metrics share; `load` is called once per evaluation.

    Attributes:
        load: raises EvalError if it cannot be had.
        check: likewise, without loading it: called before any picture is made.
        part: keeps features of some of the pictures' batches on disk, for several processes: what was loaded, pictures,
            `Backends`, the folder, and which batches are one's own. None: it has no features.
    """

    name: str
    load: Callable[[Backends], Any]
    check: Callable[[Backends], object] = lambda backends: None
    part: Callable[[Any, Sequence[Path], Backends, Path, Has], None] | None = None


@dataclass(frozen=True)
class Backends:
    """The networks behind the metrics.

    Attributes:
        fid: ``"inception"`` (clean-fid's), ``"effnet_lite0"``, or ``"auto"``: Inception if its weights are found.
        inception: ``inception-2015-12-05.pt`` or its folder, else it is looked for in ``$TORCH_HOME/hub/checkpoints``.
        clip: open_clip architecture; with a folder as `clip_path` only a label.
        clip_path: folder with open_clip_config.json and open_clip_model.safetensors, or a checkpoint file.
        clip_pretrained: open_clip's tag of weights; of a checkpoint file without open_clip_config.json beside it, the
            tag that it holds the weights of.
        candidates: captions that compete in `caption_top1`, own included.
        lpips: trunk of LPIPS.
    """

    fid: str = "auto"
    inception: str | Path | None = None
    clip: str = "emoji_clip"
    clip_path: str | Path | None = None
    clip_pretrained: str = "openai"
    candidates: int = 100
    lpips: str = "alex"
    device: str = "cpu"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.fid not in FID_EXTRACTORS:
            raise EvalError(f"FID extractor {self.fid!r} is unknown, must be one of {', '.join(FID_EXTRACTORS)}")
        if self.lpips not in LPIPS_TRUNKS:
            raise EvalError(f"LPIPS trunk {self.lpips!r} is unknown, must be one of {', '.join(LPIPS_TRUNKS)}")
        if self.candidates < 2:
            raise EvalError(f"caption_top1 needs at least 2 candidates, {self.candidates} were asked for")
        if self.batch_size < 1:
            raise EvalError(f"batch_size must be at least 1, {self.batch_size} was asked for")
