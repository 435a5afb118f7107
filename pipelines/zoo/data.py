"""Training pictures: two emoji sets, rendered at 64×64.

npm packages: `@iconify-json/noto` (Google, Apache-2.0) and `@iconify-json/fluent-emoji-flat` (Microsoft, MIT).
The decoder alone learns from more sets of coloured icons (`MORE_PACKAGES`), which are fetched and never shipped.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from segquant_bench.pipelines.runtime.paths import ZOO

PACKAGES = {"noto": "@iconify-json/noto@1.2.9", "fluent": "@iconify-json/fluent-emoji-flat@1.2.6"}
MORE_PACKAGES = {
    "noto-v1": "@iconify-json/noto-v1@1.2.5",  # Google, Apache-2.0
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",  # Microsoft, MIT
    "fluent-color": "@iconify-json/fluent-color@1.2.21",  # Microsoft, MIT
    "flat-color-icons": "@iconify-json/flat-color-icons@1.2.3",  # Icons8, MIT
    "circle-flags": "@iconify-json/circle-flags@1.2.11",  # HatScripts, MIT
    "meteocons": "@iconify-json/meteocons@1.2.4",  # Bas Milius, MIT
}
ARCHIVE = ZOO / "emoji.zip"
SIZE = 64
SKIN_TONE = re.compile(r"-(?:medium-light|medium-dark|light|medium|dark)(?:-skin-tone)?(?=-|$)")
CALIBRATION_SHARE = 0.25
HELD_OUT_SHARE = 0.08


@dataclass(frozen=True)
class Picture:
    """`file` inside the archive, `caption`, and `split`."""

    id: str
    file: str
    caption: str
    split: str


def is_skin_tone_variant(name: str, names: set[str]) -> bool:
    """True for "waving-hand-medium" beside "waving-hand", not for "white-medium-square"."""
    if "skin-tone" in name:
        return True
    return name != (base := SKIN_TONE.sub("", name)) and base in names


def split_of(name: str) -> str:
    """Split by a hash of the name, for both styles alike."""
    return "calibration" if _share(name) < CALIBRATION_SHARE else "evaluation"


def held_out(pictures: Sequence[Picture]) -> np.ndarray:
    """True [n] for the pictures that the decoder never sees, of calibration's and evaluation's subjects alike.

    By another hash of the name, for both styles alike.
    """
    return np.array([_is_held_out(picture.id.split("-", 1)[1]) for picture in pictures])


def _is_held_out(name: str) -> bool:
    return _share(f"decoder/{name}") < HELD_OUT_SHARE


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def load_icons(spec: str) -> dict[str, str]:
    """Fetch a package with `npm pack`; name → SVG."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"npm could not fetch {spec}: {done.stderr.strip().splitlines()[-1:]}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as tar:
            member = tar.extractfile("package/icons.json")
            if member is None:
                raise RuntimeError(f"{spec} has no icons.json; give an iconify package, @iconify-json/NAME@VERSION")
            icons = json.load(member)
    names = set(icons["icons"])
    chosen = {}
    for name, icon in sorted(icons["icons"].items()):
        if icon.get("hidden") or is_skin_tone_variant(name, names):
            continue
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        link = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
        chosen[name] = f'<svg xmlns="http://www.w3.org/2000/svg" {link} viewBox="{box}">{icon["body"]}</svg>'
    return chosen


def render(svg: str, size: int = SIZE) -> Image.Image:
    """Rasterise on white at 4× and reduce with a box filter."""
    # Put off: only training needs this package.
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * size, height=4 * size))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    canvas = Image.new("RGB", (4 * size, 4 * size), "white")
    canvas.paste(white.convert("RGB"), ((4 * size - white.width) // 2, (4 * size - white.height) // 2))
    return canvas.resize((size, size), Image.Resampling.BOX)


def build_archive(path: Path = ARCHIVE) -> list[Picture]:
    """One zip of PNGs and `captions.jsonl`; deterministic bytes."""
    pictures: list[Picture] = []
    blobs: dict[str, bytes] = {}
    for style, spec in PACKAGES.items():
        for name, svg in tqdm(load_icons(spec).items(), desc=f"render {style}"):
            image = render(svg)
            if np.asarray(image).min() > 250:  # an empty glyph teaches nothing
                continue
            key = f"{style}-{name}"
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            blobs[f"images/{key}.png"] = buffer.getvalue()
            caption = f"{name.replace('-', ' ')}, {style} style"
            pictures.append(Picture(key, f"images/{key}.png", caption, split_of(name)))
    lines = "".join(json.dumps(asdict(p)) + "\n" for p in pictures)
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, blob in [("captions.jsonl", lines.encode()), ("LICENSE.txt", LICENSE.encode()), *blobs.items()]:
            archive.writestr(zipfile.ZipInfo(name, date_time=(2025, 1, 1, 0, 0, 0)), blob)
    partial.replace(path)
    return pictures


def more_pictures(path: Path) -> np.ndarray:
    """uint8 [n, 64, 64, 3]: other drawings for the decoder, none of a held-out name; kept in the npz file `path`."""
    if not path.exists():
        found = []
        for style, spec in MORE_PACKAGES.items():
            icons = {name: svg for name, svg in load_icons(spec).items() if not _is_held_out(name)}
            for svg in tqdm(icons.values(), desc=f"render {style}"):
                image = np.asarray(render(svg))
                if image.min() <= 250:
                    found.append(image)
        np.savez_compressed(path, pictures=np.stack(found))
    with np.load(path, allow_pickle=False) as file:
        pictures: np.ndarray = file["pictures"]
    return pictures


def load_archive(path: Path = ARCHIVE) -> tuple[np.ndarray, list[Picture]]:
    """uint8 pictures [n, 64, 64, 3] and their captions."""
    with zipfile.ZipFile(path) as archive:
        pictures = [Picture(**json.loads(line)) for line in archive.read("captions.jsonl").decode().splitlines()]
        arrays = [np.asarray(Image.open(io.BytesIO(archive.read(p.file))).convert("RGB")) for p in pictures]
    return np.stack(arrays), pictures


LICENSE = """The pictures noto-*.png are rendered from Noto Emoji, (c) Google Inc, Apache License 2.0
(https://github.com/googlefonts/noto-emoji), as packaged in @iconify-json/noto.
The pictures fluent-*.png are rendered from Fluent Emoji Flat, (c) Microsoft Corporation, MIT License
(https://github.com/microsoft/fluentui-emoji), as packaged in @iconify-json/fluent-emoji-flat.
"""
