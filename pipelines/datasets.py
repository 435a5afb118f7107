"""Prompts and real pictures: an archive with splits, or prompt files and a folder."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import PipelineError, one_line
from pipelines.measure import file_digest, tree_digest
from pipelines.sections import CalibrationConfig, DatasetConfig


@dataclass(frozen=True)
class Dataset:
    """Evaluation and calibration prompts, which never overlap, and where the real pictures are.

    Attributes:
        evaluation: prompts of the pictures that are judged, in picture order.
        calibration: prompts of the denoiser inputs that a quantizer sees.
        held_out: prompts of the denoiser inputs on which layer errors are measured.
        archive: zip with the real pictures `members`, or None.
        real: folder with the real pictures, or None.
        digest: hash of the real pictures' content, None if there are none.
    """

    evaluation: tuple[str, ...]
    calibration: tuple[str, ...]
    held_out: tuple[str, ...]
    archive: Path | None
    members: tuple[str, ...]
    real: Path | None
    digest: str | None

    @property
    def has_real(self) -> bool:
        """Whether there are real pictures to judge against."""
        return self.digest is not None


def load_dataset(config: DatasetConfig, calibration: CalibrationConfig) -> Dataset:
    """Read, draw and check the prompts of a run.

    Raises:
        PipelineError: a file is missing, empty or malformed; more prompts are asked for than there are; a
            prompt is in both splits.
    """
    if config.archive is not None:
        archive = Path(config.archive)
        rows = _read_captions(archive)
        split = {name: [row for row in rows if row["split"] == name] for name in ("evaluation", "calibration")}
        evaluation, available = ([row["caption"] for row in split[name]] for name in ("evaluation", "calibration"))
        members = tuple(row["file"] for row in split["evaluation"])
        real, digest = None, file_digest(archive)
    else:
        archive, members = None, ()
        evaluation, available = (
            _read_prompts(config.evaluation_prompts),
            _read_prompts(config.calibration_prompts),
        )
        real, digest = _real_folder(config.real)
    _check_apart(evaluation, available)
    where = f"dataset {config.name}"
    if config.size is not None:
        _check_enough(evaluation, config.size, where, "evaluation prompts", "dataset.size")
        evaluation = _shuffled(evaluation, config.seed)[: config.size]
    wanted = calibration.prompts + calibration.held_out
    what = "calibration prompts (calibration.prompts + calibration.held_out)"
    _check_enough(available, wanted, where, what, "calibration.prompts")
    drawn = _shuffled(available, calibration.seed)
    # Held-out prompts come from the other end: runs with few and with many calibration prompts share them.
    first, last = drawn[: calibration.prompts], drawn[len(drawn) - calibration.held_out :]
    return Dataset(tuple(evaluation), tuple(first), tuple(last), archive, members, real, digest)


def _check_enough(prompts: list[str], count: int, where: str, what: str, key: str) -> None:
    if count > len(prompts):
        raise PipelineError(f"{count} {what} were asked for, {where} has {len(prompts)}; lower {key}")


def _shuffled(prompts: list[str], seed: int) -> list[str]:
    """A seeded permutation: fewer prompts are always the first ones of more."""
    return [prompts[index] for index in np.random.default_rng(seed).permutation(len(prompts))]


def _check_apart(evaluation: list[str], calibration: list[str]) -> None:
    shared = sorted(set(evaluation) & set(calibration))
    if shared:
        raise PipelineError(
            f"{len(shared)} prompts are both for calibration and for evaluation, for example {shared[0]!r}; "
            "take them out of one of the two"
        )


def _read_prompts(file: str | Path | None) -> list[str]:
    path = Path(str(file))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"prompt file {path} cannot be read: {one_line(error)}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise PipelineError(f"prompt file {path} is empty; write one prompt a line")
    return prompts


def _read_captions(archive: Path) -> list[dict[str, str]]:
    try:
        with zipfile.ZipFile(archive) as file:
            text = file.read("captions.jsonl").decode("utf-8")
            names = set(file.namelist())
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise PipelineError(
            f"data set {archive} cannot be read ({one_line(error)}); it must be a zip with captions.jsonl"
        ) from error
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not rows:
        raise PipelineError(f"captions.jsonl in {archive} is empty; write one JSON object a line")
    for row in rows:
        if not {"file", "caption", "split"} <= row.keys():
            raise PipelineError(f"a line of captions.jsonl in {archive} lacks file, caption or split: {row}")
        if row["file"] not in names:
            raise PipelineError(f"{archive} lacks the picture {row['file']} that captions.jsonl names; build it again")
    return rows


def _real_folder(folder: str | None) -> tuple[Path | None, str | None]:
    if folder is None:
        return None, None
    path = Path(folder)
    if not path.is_dir() or not any(path.glob("*.png")):
        raise PipelineError(f"dataset.real={folder} is no folder of PNG pictures; correct it or leave it out")
    return path, tree_digest(path, (".png",))


def write_real(dataset: Dataset, output: Path) -> None:
    """Put the real pictures into the empty folder `output` as PNGs, unchanged."""
    output.mkdir(parents=True)
    if dataset.archive is not None:
        with zipfile.ZipFile(dataset.archive) as archive:
            for index, member in enumerate(dataset.members):
                with archive.open(member) as source, (output / f"{index:05d}.png").open("wb") as target:
                    shutil.copyfileobj(source, target)
    elif dataset.real is not None:
        for path in sorted(dataset.real.glob("*.png")):
            shutil.copyfile(path, output / path.name)
