from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from segquant_bench.eval.errors import EvalError
from segquant_bench.hidden import visible

T = TypeVar("T")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Which are told apart; the others of Pillow's are not looked for, as one of them starts Ghostscript."""
_OTHER_FORMATS = {".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def list_pictures(folder: Path, what: str) -> list[Path]:
    """Sorted by name; EvalError without PNGs, or for other, broken or transparent pictures."""
    folder = Path(folder)
    if not folder.is_dir():
        raise EvalError(f"the folder of {what} pictures, {folder}, does not exist; generate them first")
    entries = [p for p in visible(folder.iterdir(), folder) if p.is_file()]
    foreign = [p.name for p in entries if p.suffix.lower() in _OTHER_FORMATS]
    if foreign:
        raise EvalError(
            f"{folder} holds {len(foreign)} pictures that are not PNG ({foreign[0]} …); write PNGs, because "
            "the artefacts of a lossy format move the metrics more than quantization does"
        )
    pictures = [p for p in entries if p.suffix.lower() == ".png"]
    if not pictures:
        raise EvalError(f"{folder} holds no PNG; the {what} pictures are expected there")
    for picture in pictures:
        _check_header(picture)
    return pictures


def list_numbered(folder: Path, n: int, what: str) -> list[Path]:
    """00000.png … of `n` prompts; EvalError for others."""
    pictures = list_pictures(folder, what)
    if len(pictures) != n:
        raise EvalError(f"{folder} holds {len(pictures)} PNGs for {n} prompts; generate one {what} picture per prompt")
    missing = [f"{i:05d}.png" for i, p in enumerate(pictures) if p.stem != f"{i:05d}"]
    if missing:
        raise EvalError(f"{folder} lacks {missing[0]}; the pictures must be named 00000.png … in prompt order")
    return pictures


def _check_header(path: Path) -> None:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            kind, mode, transparent = picture.format, picture.mode, "transparency" in picture.info
    except (UnidentifiedImageError, OSError) as error:
        raise EvalError(f"{path} is not a readable picture; generate it again") from error
    if kind != "PNG":
        raise EvalError(f"{path} is a {kind} file named .png; write real PNGs")
    if "A" in mode or transparent:
        raise EvalError(f"{path} has an alpha channel; flatten it on a background first")


def check_sizes(images: Sequence[Path], reference: Sequence[Path]) -> None:
    """EvalError unless pictures i have the same size."""
    for ours, theirs in zip(images, reference, strict=True):
        with Image.open(ours, formats=["PNG"]) as a, Image.open(theirs, formats=["PNG"]) as b:
            if a.size != b.size:
                raise EvalError(
                    f"{ours} is {a.size[0]}×{a.size[1]} but {theirs} is {b.size[0]}×{b.size[1]} pixels; "
                    "generate both at the same size"
                )


def read_rgb(path: Path) -> np.ndarray:
    """uint8 [height, width, 3]; EvalError if truncated."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return np.array(picture.convert("RGB"))
    except OSError as error:
        raise EvalError(f"{path} is truncated or damaged ({error}); generate it again") from error


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def content_hash(paths: Sequence[Path]) -> str:
    """sha256 over the files in order."""
    digest = hashlib.sha256()
    for path in paths:
        data = path.read_bytes()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
