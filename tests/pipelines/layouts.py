"""Small data sets in the layouts of published ones: a few prompts and pictures of one colour each."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import yaml
from PIL import Image

CATEGORIES = ("animals", "food", "logo")


def colour(index: int) -> tuple[int, int, int]:
    """The colour of picture `index`; a JPEG of one colour keeps it within 2 of 255."""
    return (40 + 11 * index % 200, 40 + 23 * index % 200, 40 + 37 * index % 200)


def jpeg(index: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """Bytes of picture `index`."""
    buffer = BytesIO()
    Image.new("RGB", size, colour(index)).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write_files(root: Path, files: dict[str, bytes], archive: str | None = None) -> None:
    """Write files below `root`, or into a zip there."""
    root.mkdir(parents=True, exist_ok=True)
    if archive is not None:
        with zipfile.ZipFile(root / archive, "w", zipfile.ZIP_DEFLATED) as target:
            for name, blob in files.items():
                target.writestr(name, blob)
        return
    for name, blob in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(blob)


def write_mjhq(root: Path, n: int = 40, archive: str | None = None, folder: str = "") -> dict[str, dict[str, str]]:
    """meta_data.json and CATEGORY/NAME.jpg; returns the former. Names are no sorted numbers, as its are not."""
    meta = {
        f"{index * 7919 % 10007:05x}f": {
            "category": CATEGORIES[index % 3],
            "prompt": f" picture {index} of {CATEGORIES[index % 3]}, artstation\n",
        }
        for index in range(n)
    }
    write_files(root, {"meta_data.json": json.dumps(meta).encode()})
    pictures = {f"{folder}{row['category']}/{key}.jpg": jpeg(i) for i, (key, row) in enumerate(meta.items())}
    write_files(root, pictures, archive)
    return meta


def write_coco(root: Path, split: str, first: int, n: int, pictures: bool = True, archive: bool = False) -> None:
    """annotations/captions_SPLIT.json with three captions a picture, not in order, and SPLIT/*.jpg.

    Captions name the picture; the last picture of every split has the caption "A man riding a wave."
    """
    start = f"COCO_{split}_" if split.endswith("2014") else ""
    images = [{"id": number, "file_name": f"{start}{number:012d}.jpg"} for number in range(first, first + n)]
    rows = []
    for image in reversed(images):
        number = image["id"]
        common = number == first + n - 1
        for k in (2, 0, 1):
            text = "A man riding a wave." if common and k == 0 else f"Caption {k} of picture {number}."
            rows.append({"image_id": number, "id": 10 * number + k, "caption": f" {text}\n"})
    write_files(
        root, {f"annotations/captions_{split}.json": json.dumps({"images": images, "annotations": rows}).encode()}
    )
    if pictures:
        files = {f"{split}/{image['file_name']}": jpeg(image["id"] - first) for image in images}
        write_files(root, files, f"{split}.zip" if archive else None)


def write_sdci(root: Path, n: int = 40, folder: str = "sDCI") -> dict[str, str]:
    """sDCI.yaml and NAME.jpg as SVDQuant publishes them; returns the prompts."""
    prompts = {
        f"sa_{15000 + index * 37 % 101}": f"A dense scene: number {index}, seen from above" for index in range(n)
    }
    files = {f"{folder}/{name}.jpg": jpeg(index, (60, 40)) for index, name in enumerate(prompts)}
    write_files(root, {"sDCI.yaml": yaml.safe_dump(prompts, sort_keys=False).encode(), **files})
    return prompts


def write_dci(root: Path, n: int = 6, folder: str = "complete") -> None:
    """complete/ID.json and photos/*.jpg as the authors publish them; the last picture has no summary."""
    files = {}
    for index in range(n):
        row = {
            "image": f"sa_{index}.jpg",
            "short_caption": f"Short {index}.",
            "extra_caption": f"More of {index}.",
            "mask_data": {},
            "summaries": {"base": [f"Summary {index}", "another"]} if index < n - 1 else None,
        }
        files[f"{folder}/{index:05d}.json"] = json.dumps(row).encode()
        files[f"photos/sa_{index}.jpg"] = jpeg(index)
    write_files(root, files)
