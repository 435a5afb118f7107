"""Real pictures: where one lies (a file, or a member of a zip), reading, fitting to a size, hashing, writing PNGs."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.errors import PipelineError, one_line
from pipelines.measure import file_digest

PNG_LEVEL = 1  # of zlib: half the default's time for 15 % more bytes, and 5,000 pictures are many


@dataclass(frozen=True)
class Picture:
    """One picture on disk: the file `path`, or the member `member` of the zip `path`."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.member} in {self.path}"


@contextmanager
def _reader(pictures: Sequence[Picture]) -> Iterator[Callable[[Picture], bytes]]:
    """A function from picture to bytes; every zip is opened once, and closed at the end."""
    with ExitStack() as stack:
        archives = {
            path: stack.enter_context(zipfile.ZipFile(path))
            for path in sorted({picture.path for picture in pictures if picture.member is not None})
        }

        def read(picture: Picture) -> bytes:
            if picture.member is None:
                return picture.path.read_bytes()
            return archives[picture.path].read(picture.member)

        yield read


def missing(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures that are not there, in order; nothing is decoded."""
    return [
        picture
        for picture in pictures
        if (not picture.path.is_file() if picture.member is None else picture.member not in members(picture.path))
    ]


def members(archive: Path) -> dict[str, tuple[int, int]]:
    """Length and CRC-32 of every member of a zip, by name; PipelineError if it is none."""
    try:
        stat = archive.stat()
        return _members(archive, stat.st_size, stat.st_mtime_ns)
    except (OSError, zipfile.BadZipFile) as error:
        raise PipelineError(f"{archive} cannot be read ({one_line(error)}); get it again") from error


@lru_cache(maxsize=8)
def _members(archive: Path, size: int, mtime_ns: int) -> dict[str, tuple[int, int]]:
    with zipfile.ZipFile(archive) as file:
        return {info.filename: (info.file_size, info.CRC) for info in file.infolist()}


def pictures_digest(pictures: Sequence[Picture]) -> str:
    """A hash of the pictures' contents in order: sha256 of files; length and CRC-32 of members of a zip.

    The zip's directory holds the latter two, so that gigabytes need not be read to notice a changed picture.
    """
    whole = hashlib.sha256()
    for picture in pictures:
        if picture.member is None:
            whole.update(f"{file_digest(picture.path)}\n".encode())
        else:
            length, crc = members(picture.path)[picture.member]
            whole.update(f"{length} {crc:08x}\n".encode())
    return whole.hexdigest()[:16]


def _decode(blob: bytes, picture: Picture) -> Image.Image:
    """RGB, the way up that its EXIF says, transparency on white."""
    try:
        with Image.open(io.BytesIO(blob)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "P" or "transparency" in image.info:
                image = image.convert("RGBA")
            if image.mode in ("RGBA", "LA"):
                white = Image.new("RGBA", image.size, "white")
                white.alpha_composite(image.convert("RGBA"))
                image = white
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise PipelineError(f"the picture {picture} cannot be read ({one_line(error)}); get it again") from error


def fit_picture(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """The picture at `size` (width, height), resized by Pillow's antialiased bicubic filter, as clean-fid's is.

    Args:
        image: of any size.
        size: width and height in pixels.
        fit: "crop" cuts the largest centred piece of the wanted proportions first; "stretch" changes proportions.
    """
    if image.size == size:
        return image
    if fit == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def read_pictures(pictures: Sequence[Picture], size: tuple[int, int], fit: str | None) -> list[Image.Image]:
    """RGB pictures of `size` (width, height), in order.

    Args:
        pictures: where they lie.
        size: width and height in pixels.
        fit: as for `fit_picture`; None: they must have that size.

    Raises:
        PipelineError: a picture cannot be read, or has another size and may not be fitted.
    """
    with _reader(pictures) as read:
        images = [_decode(read(picture), picture) for picture in pictures]
    for picture, image in zip(pictures, images, strict=True):
        if fit is None and image.size != size:
            raise PipelineError(
                f"the picture {picture} is {image.width}×{image.height}, {size[0]}×{size[1]} is wanted; set "
                "dataset.fit=crop, or model.call.width and model.call.height to the pictures' size"
            )
    return [image if fit is None else fit_picture(image, size, fit) for image in images]


def write_pictures(pictures: Sequence[Picture], output: Path, size: tuple[int, int], fit: str | None) -> None:
    """Write 00000.png … into the new folder `output`, several at a time.

    Args:
        pictures: where they lie.
        output: folder to make.
        size: width and height in pixels.
        fit: as for `fit_picture`; None keeps every picture's own size, and the bytes of RGB PNGs.

    Raises:
        PipelineError: a picture cannot be read.
    """
    output.mkdir(parents=True)
    with _reader(pictures) as read, ThreadPoolExecutor(os.cpu_count()) as pool:

        def write(index: int) -> None:
            blob, target = read(pictures[index]), output / f"{index:05d}.png"
            if fit is None and _is_rgb_png(blob):
                target.write_bytes(blob)
                return
            image = _decode(blob, pictures[index])
            image = image if fit is None else fit_picture(image, size, fit)
            image.save(target, format="PNG", compress_level=PNG_LEVEL)

        for _ in pool.map(write, range(len(pictures))):
            pass


def _is_rgb_png(blob: bytes) -> bool:
    """Whether these are a PNG's bytes with 8-bit RGB: signature, then IHDR with depth 8 and colour type 2."""
    return blob[:8] == b"\x89PNG\r\n\x1a\n" and blob[24:26] == b"\x08\x02"
