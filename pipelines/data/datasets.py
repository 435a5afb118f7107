from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segquant_bench.pipelines.config.dataset import DatasetConfig
from segquant_bench.pipelines.config.sections import CalibrationConfig
from segquant_bench.pipelines.data import layouts
from segquant_bench.pipelines.data.files import Entry, Source, read_archive, read_prompt_files, read_prompts, read_table
from segquant_bench.pipelines.data.own import read_own
from segquant_bench.pipelines.data.pictures import Picture, missing, pictures_digest, read_pictures
from segquant_bench.pipelines.errors import PipelineError

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

RESERVE = 1024  # entries that are kept for calibration where a data set has no split, so that `size` changes none


@dataclass(frozen=True, eq=False)
class Dataset:
    """Prompts and real pictures.

    Attributes:
        evaluation: prompts in picture order, none in the others.
        calibration: prompts that a quantizer sees.
        held_out: prompts for layer errors.
        pictures: each prompt's, by these names, or None.
        real: pictures to judge against, if any.
        fit: see `fit_picture`; None: sizes stay.
        record: how prompts were drawn, with a hash; JSON types.
    """

    name: str
    evaluation: tuple[str, ...]
    calibration: tuple[str, ...]
    held_out: tuple[str, ...]
    pictures: Mapping[str, tuple[Picture | None, ...]]
    real: tuple[Picture, ...]
    fit: str | None
    record: Mapping[str, Any]

    @property
    def has_real(self) -> bool:
        return bool(self.real)

    @cached_property
    def digest(self) -> str | None:
        """Hash of the pictures to judge against, if any."""
        return pictures_digest(self.real) if self.real else None

    def needed_pictures(self, split: str) -> list[Picture]:
        """Every prompt's real picture in a split.

        Raises:
            PipelineError: one is missing.
        """
        found = self.pictures[split]
        present = [picture for picture in found if picture is not None]
        absent = missing(present)
        if len(present) < len(found):
            prompt = getattr(self, split)[found.index(None)]
            raise PipelineError(
                f"{len(found) - len(present)} of {len(found)} {split} prompts of dataset {self.name} have no picture, "
                f"for example {prompt!r}, and this model needs one for each; choose a data set that has them"
            )
        if absent:
            raise PipelineError(
                f"{len(absent)} of {len(found)} {split} pictures of dataset {self.name} are not there, for example "
                f"{absent[0]}; get them"
            )
        return present

    def pictures_digest(self, split: str) -> str:
        return pictures_digest(self.needed_pictures(split))

    def read(self, split: str, indices: Sequence[int], size: tuple[int, int]) -> list[Image.Image]:
        """RGB pictures at `size` (width, height); errors as `read_pictures`."""
        pictures = self.needed_pictures(split)
        return read_pictures([pictures[index] for index in indices], size, self.fit)


def load_dataset(config: DatasetConfig, calibration: CalibrationConfig) -> Dataset:
    """Read, draw and check the prompts of a run.

    Raises:
        PipelineError: a bad file, too few prompts, or one in both splits.
    """
    source = _read(config)
    drawn, left = draw(source.evaluation, config)
    if source.calibration is None:
        available = _alone(left, source.evaluation)
    else:
        if config.layout in (None, "folder"):  # files or entries of one's own, where a repeat is a slip
            _check_apart(source.evaluation, source.calibration)
        available = _unseen(source.calibration, source.evaluation)
    wanted = calibration.prompts + calibration.held_out
    if source.calibration is None:
        available = available[: max(RESERVE, wanted)]
    _check_available(available, wanted, config)
    spread = _shuffled(available, calibration.seed)
    # Held-out prompts come from the other end: runs with few and with many calibration prompts share them.
    splits = {
        "evaluation": drawn,
        "calibration": spread[: calibration.prompts],
        "held_out": spread[len(spread) - calibration.held_out :],
    }
    real = _real_pictures(config, source, drawn)
    prompts = {name: tuple(entry.prompt for entry in entries) for name, entries in splits.items()}
    pictures = {name: tuple(entry.picture for entry in entries) for name, entries in splits.items()}
    record = _record(config, splits, len(source.evaluation))
    return Dataset(config.name, **prompts, pictures=pictures, real=real, fit=config.fit, record=record)


def _read(config: DatasetConfig) -> Source:
    root = None if config.root is None else Path(config.root)
    own = None if config.calibration_prompts is None else Path(config.calibration_prompts)
    if config._target_ is not None:
        source = read_own(config._target_, config.arguments)
    elif config.layout is None and config.archive is None:
        return read_prompt_files(Path(str(config.evaluation_prompts)), Path(str(own)), config.real)
    elif config.layout is None:
        source = read_archive(Path(str(config.archive)))
    elif config.layout == "folder":
        source = read_table(Path(str(config.table)), root, config.pictures)
    else:
        source = _read_published(config, Path(str(root)))
    return source if own is None else Source(source.evaluation, read_prompts(own), source.real)


def _read_published(config: DatasetConfig, root: Path) -> Source:
    if config.layout == "mjhq":
        return layouts.read_mjhq(root, config.pictures)
    if config.layout == "sdci":
        return layouts.read_sdci(root, config.pictures)
    caption = str(config.caption)
    if config.layout == "dci":
        return layouts.read_dci(root, caption, config.pictures)
    own = None if config.calibration_prompts else config.calibration_split
    return layouts.read_coco(root, str(config.split), own, caption, config.pictures)


def draw(entries: list[Entry], config: DatasetConfig) -> tuple[list[Entry], list[Entry]]:
    """The entries to evaluate on, and the others, the least likely drawn first.

    "permutation" is numpy's, "shuffle" Python's `random.Random(seed).shuffle` sorted by key (SVDQuant's for MJHQ and
    sDCI, seed 0), "first" the files' order. `size` None takes all.

    Raises:
        PipelineError: there are fewer than `size`.
    """
    size = config.size
    if size is None:
        return entries, []
    if size > len(entries):
        raise PipelineError(
            f"{size} evaluation prompts were asked for, dataset {config.name} has {len(entries)}; lower dataset.size"
        )
    if config.draw == "shuffle":
        order = list(range(len(entries)))
        random.Random(config.seed).shuffle(order)
        chosen = sorted((entries[index] for index in order[:size]), key=lambda entry: entry.key)
        return chosen, [entries[index] for index in reversed(order[size:])]
    if config.draw == "first":
        return entries[:size], _shuffled(entries[size:], config.seed)
    shuffled = _shuffled(entries, config.seed)
    return shuffled[:size], shuffled[: size - 1 : -1]


def _shuffled(entries: list[Entry], seed: int) -> list[Entry]:
    # Fewer entries are the first ones of more.
    return [entries[index] for index in np.random.default_rng(seed).permutation(len(entries))]


def _alone(left: list[Entry], entries: list[Entry]) -> list[Entry]:
    """Those whose prompt no other entry has."""
    times = Counter(entry.prompt for entry in entries)
    return [entry for entry in left if times[entry.prompt] == 1]


def _unseen(calibration: list[Entry], evaluation: list[Entry]) -> list[Entry]:
    seen = {entry.prompt for entry in evaluation}
    kept = []
    for entry in calibration:
        if entry.prompt not in seen:
            seen.add(entry.prompt)
            kept.append(entry)
    left_out = len(calibration) - len(kept)
    if left_out:
        log.info("%d calibration prompts repeat another or an evaluation prompt: left out", left_out)
    return kept


def _check_apart(evaluation: list[Entry], calibration: list[Entry]) -> None:
    shared = sorted({entry.prompt for entry in evaluation} & {entry.prompt for entry in calibration})
    if shared:
        raise PipelineError(
            f"{len(shared)} prompts are both for calibration and for evaluation, for example {shared[0]!r}; "
            "take them out of one of the two"
        )


def _check_available(available: list[Entry], wanted: int, config: DatasetConfig) -> None:
    if wanted <= len(available):
        return
    hints = ["lower calibration.prompts"] if available else []
    if config.layout is not None or config._target_ is not None:
        hints += ["set dataset.size" if config.size is None else "lower dataset.size"]
        hints += ["set dataset.calibration_prompts=FILE"]
    left = "" if config.layout is None else " left that no evaluation prompt repeats"
    once = ", repeats counted once" if config.layout in (None, "folder") else ""
    raise PipelineError(
        f"{wanted} calibration prompts (calibration.prompts + calibration.held_out) were asked for, dataset "
        f"{config.name} has {len(available)}{left}{once}; {' or '.join(hints) or 'give some'}"
    )


def _real_pictures(config: DatasetConfig, source: Source, drawn: list[Entry]) -> tuple[Picture, ...]:
    if not config.pictures:
        return ()
    pictures = source.real or tuple(entry.picture for entry in drawn if entry.picture is not None)
    absent = missing(pictures)
    if absent:
        raise PipelineError(
            f"{len(absent)} of {len(pictures)} real pictures of dataset {config.name} are not there, for example "
            f"{absent[0]}; get them, or set dataset.pictures=false to do without"
        )
    return pictures


def _record(config: DatasetConfig, splits: Mapping[str, list[Entry]], total: int) -> dict[str, Any]:
    hashes = {
        f"{name}_hash": _hash([[entry.key, entry.prompt] for entry in splits[name]])
        for name in ("evaluation", "calibration", "held_out")
    }
    drawn = {"draw": config.draw, "seed": config.seed} if config.size is not None else {"draw": "all", "seed": None}
    return {"name": config.name, "n": len(splits["evaluation"]), "of": total, **drawn, **hashes}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:16]
