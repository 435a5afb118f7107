"""Real pictures."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime.digests import file_digest

log = logging.getLogger(__name__)

PNG_LEVEL = 1  # of zlib: half the default's time for 15 % more bytes, and 5,000 pictures are many
# What zipfile and Pillow's readers raise for damaged bytes.
DAMAGED = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, RuntimeError, TypeError, zipfile.BadZipFile, struct.error,
    zlib.error,
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What pictures may be, whatever their names: Pillow's other readers are hardly used, and one starts Ghostscript."""
GREY16 = ("PNG", "PPM", "JPEG2000")  # formats whose 16-bit grey always runs from black 0 to white 65,535


def stays_below(name: str) -> bool:
    """Whether a name can be that of a file below a folder: no way out of it, and none that no file system takes."""
    parts = name.replace("\\", "/").split("/")
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError:
        return False
    return "\0" not in name and ".." not in parts and not name.startswith("/") and longest <= 255 and len(name) < 1000


@dataclass(frozen=True)
class Picture:
    """A file, or a member of a zip."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.member} in {self.path}"


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise PipelineError(f"{what} is too large to read ({one_line(error)}); make it smaller") from error
    except DAMAGED as error:
        why = one_line(error) or type(error).__name__
        raise PipelineError(f"{what} cannot be read ({why}); get it again") from error


@contextmanager
def _reader(pictures: Sequence[Picture]) -> Iterator[Callable[[Picture], bytes]]:
    with ExitStack() as stack:
        archives = {}
        for path in sorted({picture.path for picture in pictures if picture.member is not None}):
            with _named(str(path)):
                archives[path] = stack.enter_context(zipfile.ZipFile(path))

        def read(picture: Picture) -> bytes:
            with _named(f"the picture {picture}"):
                if picture.member is None:
                    return picture.path.read_bytes()
                return archives[picture.path].read(picture.member)

        yield read


def list_folder(folder: Path, key: str) -> tuple[Picture, ...]:
    """Every picture of a folder by name, of any format; a warning names what is left out.

    Raises:
        PipelineError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise PipelineError(f"{key}={folder} is no folder of pictures; correct it or leave it out")
    every = sorted(folder.iterdir())
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    used = [path for path in every if path.suffix.lower() in known and path.is_file() and path.name[0] != "."]
    left = [f"{path.name}/" if path.is_dir() else path.name for path in every if path not in used]
    told = f"{', '.join(map(one_line, left[:3]))}{', …' if len(left) > 3 else ''}"
    if not used:
        held = f" (it holds {told})" if left else ""
        raise PipelineError(f"{key}={folder} is no folder of PNG or other pictures{held}; correct it or leave it out")
    if left:
        log.warning("%s: %d pictures are used, and %d entries are left out (%s)", key, len(used), len(left), told)
    return tuple(map(Picture, used))


def missing(pictures: Sequence[Picture]) -> list[Picture]:
    return [
        picture
        for picture in pictures
        if (not picture.path.is_file() if picture.member is None else picture.member not in members(picture.path))
    ]


def members(archive: Path) -> dict[str, tuple[int, int]]:
    """Length and CRC-32 of a zip's members, by name; PipelineError if it is none."""
    with _named(str(archive)):
        stat = archive.stat()
        return _members(archive, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _members(archive: Path, size: int, mtime_ns: int) -> dict[str, tuple[int, int]]:
    with zipfile.ZipFile(archive) as file:
        return {info.filename: (info.file_size, info.CRC) for info in file.infolist()}


def pictures_digest(pictures: Sequence[Picture]) -> str:
    """A hash of contents: sha256 of files; length and CRC-32 of a zip's members."""
    whole = hashlib.sha256()
    for picture in pictures:
        if picture.member is None:
            whole.update(f"{file_digest(picture.path)}\n".encode())
        else:
            length, crc = members(picture.path)[picture.member]
            whole.update(f"{length} {crc:08x}\n".encode())
    return whole.hexdigest()[:16]


def _decode(blob: bytes, picture: Picture) -> Image.Image:
    with _named(f"the picture {picture}"), Image.open(io.BytesIO(blob), formats=FORMATS) as opened:
        deep = opened.mode.startswith(("I", "F"))
        if deep and not _is_grey16(opened):
            raise PipelineError(
                f"the picture {picture} has grey values of a range that is not known ({opened.format}, Pillow's mode "
                f"{opened.mode}); save it with 8 bits, or as a PNG with 16"
            )
        image = ImageOps.exif_transpose(opened)
        if deep:
            image = _from_grey16(image)
        if image.mode == "P" or "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode in ("RGBA", "LA"):
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
            image = white
        return image.convert("RGB")


def _is_grey16(image: Image.Image) -> bool:
    # 65,535 is white: Pillow has other TIFFs in the same mode.
    if isinstance(image, TiffImageFile):
        bits, black_is_zero = image.tag_v2.get(258), image.tag_v2.get(262) == 1
        return image.mode.startswith("I;16") and bits == (16,) and bool(black_is_zero)
    return image.format in GREY16 and image.mode in ("I;16", "I;16B", "I")


def _from_grey16(image: Image.Image) -> Image.Image:
    """16 bits to 8, rounded; Pillow would cut off at 255."""
    values = np.asarray(image).astype(np.uint32)
    grey = (values + 128) // 257
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8))


def fit_picture(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """The picture at `size`, by Pillow's antialiased bicubic filter, as in clean-fid.

    Args:
        size: width and height in pixels.
        fit: "crop" cuts the largest centred piece first; "stretch" changes proportions.
    """
    if image.size == size:
        return image
    if fit == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def read_pictures(pictures: Sequence[Picture], size: tuple[int, int], fit: str | None) -> list[Image.Image]:
    """RGB pictures of `size`, in order.

    Args:
        size: width and height in pixels.
        fit: as for `fit_picture`; None refuses other sizes.

    Raises:
        PipelineError: unreadable, or another size.
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
    """Write 00000.png … into the new folder `output`.

    Args:
        size: width and height in pixels.
        fit: as for `fit_picture`; None keeps sizes, and the bytes of RGB PNGs.

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
    return blob[:8] == b"\x89PNG\r\n\x1a\n" and blob[24:26] == b"\x08\x02"
