from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from segquant_bench.pipelines.bounds import check_bounds
from segquant_bench.pipelines.config.booleans import Flag, check_flags
from segquant_bench.pipelines.errors import PipelineError, one_of

LAYOUTS = ("mjhq", "coco", "dci", "sdci", "folder")
DRAWS = ("permutation", "shuffle", "first")
FITS = ("crop", "stretch")
CAPTIONS = {"coco": ("first", "all"), "dci": ("summary", "short", "extended")}


@dataclass
class DatasetConfig:
    """Which prompts and real pictures; calibration and evaluation never overlap.

    `archive` is a zip of captions.jsonl and PNGs; else two files of prompts and perhaps a folder `real`. `layout` is
    a published data set below `root` (`data.layouts`) or a `table`. `_target_` names your function of entries
    (`data.own`). `calibration_prompts` replaces a layout's own.

    `size` prompts are drawn with `seed`; None takes all. `draw`: see `data.datasets.draw`. `pictures`: false without
    any. `fit`: "crop" or "stretch" real pictures, or None. `caption`: of COCO (first, all) or DCI (summary, short,
    extended).
    """

    name: str = MISSING
    layout: str | None = None
    root: str | None = None
    table: str | None = None
    split: str | None = None
    calibration_split: str | None = None
    caption: str | None = None
    archive: str | None = None
    evaluation_prompts: str | None = None
    calibration_prompts: str | None = None
    real: str | None = None
    pictures: Flag = True
    fit: str | None = None
    draw: str = "permutation"
    size: int | None = None
    seed: int = 0
    _target_: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self._target_ is not None:
            self._check_own()
        elif self.arguments:
            raise PipelineError(f"dataset {self.name} has arguments and no dataset._target_ to give them to; set it")
        elif self.layout is None:
            self._check_files()
        else:
            one_of("dataset.layout", self.layout, LAYOUTS)
            self._check_layout()
        one_of("dataset.draw", self.draw, DRAWS)
        if self.fit is not None:
            one_of("dataset.fit", self.fit, FITS)
        check_bounds(self, "dataset.")
        check_flags(self, "dataset.")

    def _check_own(self) -> None:
        foreign = ("layout", "root", "table", "split", "calibration_split", "caption", "archive", "real")
        given = [key for key in (*foreign, "evaluation_prompts") if getattr(self, key) is not None]
        if given:
            raise PipelineError(
                f"dataset._target_={self._target_} does not read dataset.{given[0]}; leave it out, or set "
                f"dataset.arguments.{given[0]}"
            )

    def _check_files(self) -> None:
        if self.archive is None and (self.evaluation_prompts is None or self.calibration_prompts is None):
            raise PipelineError(
                f"dataset {self.name!r} names no prompts; set dataset.archive=FILE.zip, or both "
                "dataset.evaluation_prompts=FILE and dataset.calibration_prompts=FILE, or dataset.layout and "
                "dataset.root=DIRECTORY"
            )

    def _check_layout(self) -> None:
        needed = "table" if self.layout == "folder" else "root"
        if getattr(self, needed) is None:
            raise PipelineError(f"dataset.layout={self.layout} needs dataset.{needed}=PATH; set it")
        foreign = {"archive", "evaluation_prompts", "real"}
        if self.layout != "folder":
            foreign.add("table")
        if self.layout != "coco":
            foreign |= {"split", "calibration_split"}
        given = sorted(key for key in foreign if getattr(self, key) is not None)
        if given:
            raise PipelineError(f"dataset.layout={self.layout} does not read dataset.{given[0]}; leave it out")
        known = CAPTIONS.get(str(self.layout), ())
        if self.caption is not None and not known:
            raise PipelineError(f"dataset.layout={self.layout} has one caption a picture; leave dataset.caption out")
        if known:
            one_of("dataset.caption", str(self.caption), known)
        if self.layout == "coco" and self.split is None:
            raise PipelineError("dataset.layout=coco needs dataset.split, for example val2017; set it")
