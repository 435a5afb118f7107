"""Published data sets, read as their authors lay them out; nothing is downloaded.

| layout | below `root` |
|---|---|
| mjhq | meta_data.json; mjhq30k_imgs.zip, or CATEGORY/NAME.jpg out of it (also below mjhq30k_imgs/) |
| coco | annotations/captions_SPLIT.json; SPLIT.zip, or SPLIT/*.jpg out of it |
| sdci | sDCI.yaml; *.jpg out of sDCI.gz, below sDCI/ or `root` itself |
| dci | complete/*.json (or annotations/*.json, which have no summaries); photos/*.jpg |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from segquant_bench.hidden import visible
from segquant_bench.hints import nearest
from segquant_bench.pipelines.data.files import Entry, Source, load_yaml, parse_json, read_text
from segquant_bench.pipelines.data.pictures import Picture, members, stays_below
from segquant_bench.pipelines.errors import PipelineError, one_line

log = logging.getLogger(__name__)

MJHQ = "hf download playgroundai/MJHQ-30K --repo-type dataset meta_data.json mjhq30k_imgs.zip --local-dir {root}"
SDCI = "hf download mit-han-lab/svdquant-datasets --repo-type dataset sDCI.yaml sDCI.gz --local-dir {root}"
COCO = "annotations_trainval{year}.zip and {split}.zip from https://cocodataset.org/#download"
DCI = (
    "dci.tar.gz, which https://github.com/facebookresearch/DCI points to, and the pictures of SA-1B's sa_000138.tar "
    "as photos/"
)

Find = Callable[[str], Picture]


def find_pictures(root: Path, names: Collection[str], folders: tuple[str, ...], archive: str | None) -> Find | None:
    """Where a data set's pictures lie, zipped or unpacked.

    Args:
        folders: below `root`, tried in order; prefixes in a zip.
        archive: the zip below `root`.

    Returns:
        Picture by relative path, some possibly missing; None without any.

    Raises:
        PipelineError: the zip is damaged.
    """
    if archive is not None and (root / archive).is_file():
        packed = members(root / archive)
        for folder in folders:
            start = f"{folder}/" if folder else ""
            if any(start + name in packed for name in names):
                return lambda name: Picture(root / archive, start + name)
    for folder in folders:
        if any((root / folder / name).is_file() for name in names):
            return lambda name: Picture(root / folder / name)
    return None


def _needed(path: Path, layout: str, get: str) -> Path:
    if not path.is_file():
        raise PipelineError(f"dataset.layout={layout}: there is no {path}; get {get}, or set dataset.root=DIRECTORY")
    return path


def _required(found: Find | None, root: Path, layout: str, what: str, get: str) -> Find:
    if found is None:
        raise PipelineError(
            f"dataset.layout={layout}: {root} has no pictures ({what}); get {get}, or set dataset.pictures=false to "
            "do without"
        )
    return found


def read_mjhq(root: Path, pictures: bool) -> Source:
    """MJHQ-30K (arXiv 2402.17245)."""
    get = f"it with `{MJHQ.format(root=root)}`"
    path = _needed(root / "meta_data.json", "mjhq", get)
    rows = parse_json(read_text(path, "MJHQ's"), "MJHQ's", path)
    if not isinstance(rows, dict) or not rows or not all(_has_text(row, "prompt", "category") for row in rows.values()):
        raise PipelineError(f"{path} is not MJHQ's: it must map names to a category and a prompt; get {get}")
    names = {key: _inside(f"{row['category']}/{key}.jpg", path) for key, row in rows.items()}
    find = None
    if pictures:
        found = find_pictures(root, names.values(), ("", "mjhq30k_imgs"), "mjhq30k_imgs.zip")
        find = _required(found, root, "mjhq", f"mjhq30k_imgs.zip, or {one_line(next(iter(names.values())))}", get)
    return Source([Entry(key, row["prompt"].strip(), find and find(names[key])) for key, row in rows.items()])


def _inside(name: str, path: Path) -> str:
    """A picture's name in a data set's file; PipelineError if it leads elsewhere."""
    if not stays_below(name):
        told = one_line(name[:80])
        raise PipelineError(f"{path} names the picture {told}, which no file below its data set can be; get it again")
    return name


def _has_text(row: Any, *keys: str) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys)


def read_coco(root: Path, split: str, calibration_split: str | None, caption: str, pictures: bool) -> Source:
    """COCO captions (arXiv 1504.00325).

    Args:
        split: val2017, val2014 …
        calibration_split: its pictures may be missing; None: the rest of `split`.
        caption: "first" by id; "all" joined by spaces.
        pictures: whether those of `split` must be there.
    """
    evaluation = _coco_entries(root, split, caption, pictures)
    if calibration_split is None:
        return Source(evaluation)
    return Source(evaluation, _coco_entries(root, calibration_split, caption, None))


def _coco_entries(root: Path, split: str, caption: str, pictures: bool | None) -> list[Entry]:
    """By picture id; `pictures` None: where they are at hand."""
    get = COCO.format(year=split[-4:], split=split)
    folder = root / "annotations"
    path = folder / f"captions_{split}.json"
    if not path.is_file() and (known := sorted(item.stem[9:] for item in folder.glob("captions_*.json"))):
        raise PipelineError(f"there are no captions of the split {split!r} in {folder}; {nearest(split, known)}")
    raw = parse_json(read_text(_needed(path, "coco", get), "COCO's"), "COCO's", path)
    try:
        names = {image["id"]: image["file_name"] for image in raw["images"]}
        captions: dict[int, list[str]] = {}
        for row in sorted(raw["annotations"], key=lambda row: row["id"]):
            captions.setdefault(row["image_id"], []).append(row["caption"].strip())
        files = {number: _inside(f"{split}/{names[number]}", path) for number in sorted(captions)}
    except (KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path} is not COCO's captions (no {one_line(error)}); get {get}") from error
    if not files:
        raise PipelineError(f"{path} has no captions; get {get}")
    find = None if pictures is False else find_pictures(root, files.values(), ("",), f"{split}.zip")
    if pictures:
        find = _required(find, root, "coco", f"{split}.zip, or {split}/*.jpg", get)
    return [
        Entry(f"{number:012d}", " ".join(captions[number][: None if caption == "all" else 1]), find and find(name))
        for number, name in files.items()
    ]


def read_sdci(root: Path, pictures: bool) -> Source:
    """sDCI of SVDQuant (arXiv 2411.05007): {name: prompt of at most 77 tokens}."""
    get = f"it with `{SDCI.format(root=root)}`"
    path = root / "sDCI.yaml"
    if not path.is_file() and (root / "complete").is_dir():
        raise PipelineError(f"{root} holds DCI as its authors published it; set dataset.layout=dci")
    rows = load_yaml(read_text(_needed(path, "sdci", get), "SVDQuant's"), "SVDQuant's", path)
    if not isinstance(rows, dict) or not rows or not all(isinstance(prompt, str) for prompt in rows.values()):
        raise PipelineError(f"{path} is not SVDQuant's: it must map names to prompts; get {get}")
    find = None
    if pictures:
        found = find_pictures(root, [_inside(f"{key}.jpg", path) for key in rows], ("sDCI", ""), None)
        find = _required(found, root, "sdci", "sDCI/NAME.jpg", f"{get}, unpack `tar xf sDCI.gz` in {root}/sDCI")
    return Source([Entry(str(key), prompt.strip(), find and find(f"{key}.jpg")) for key, prompt in rows.items()])


def read_dci(root: Path, caption: str, pictures: bool) -> Source:
    """Densely Captioned Images (arXiv 2312.08578).

    Args:
        root: the folder densely_captioned_images.
        caption: "summary" (at most 77 tokens), "short" (one line) or "extended", as SegQuant's published code.
        pictures: whether they must be there.
    """
    folder = root / "complete"
    if not folder.is_dir() and caption != "summary":
        folder = root / "annotations"
    files = visible(folder.glob("*.json"), folder)
    if not files and (root / "sDCI.yaml").is_file():
        raise PipelineError(f"{root} holds DCI as SVDQuant published it; set dataset.layout=sdci")
    if not files:
        raise PipelineError(f"dataset.layout=dci: {folder} has no JSON; get {DCI}, or set dataset.root=DIRECTORY")
    log.info("reading %d files of %s", len(files), folder)
    rows = {path.stem: _dci_prompt(path, caption) for path in files}
    kept = {key: found for key, found in rows.items() if found is not None}
    if not kept:
        raise PipelineError(f"no file of {folder} has a caption of the kind dataset.caption={caption}; choose another")
    if len(kept) < len(rows):
        log.info("%d of %d pictures have no caption of the kind %s", len(rows) - len(kept), len(rows), caption)
    find = None
    if pictures:
        found = find_pictures(root, [image for _, image in kept.values()], ("photos",), None)
        find = _required(found, root, "dci", "photos/*.jpg", DCI)
    return Source([Entry(key, prompt, find and find(image)) for key, (prompt, image) in kept.items()])


def _dci_prompt(path: Path, caption: str) -> tuple[str, str] | None:
    """Prompt and picture of a file, if any."""
    row = parse_json(read_text(path, "DCI's"), "DCI's", path)
    if not _has_text(row, "image", "short_caption"):
        raise PipelineError(f"{path} is not DCI's: it has no image or no short_caption; get {DCI}")
    if caption == "summary":
        summaries = row.get("summaries")
        base = summaries.get("base") if isinstance(summaries, dict) else None
        prompt = base[0] if isinstance(base, list) and base else base
    elif caption == "short":
        prompt = row["short_caption"]
    else:
        prompt = f"{row['short_caption'].strip()} {str(row.get('extra_caption') or '').strip()}"
    if prompt and not isinstance(prompt, str):
        raise PipelineError(f"{path} is not DCI's: a caption of it is no text; get {DCI}")
    return (prompt.strip(), _inside(row["image"], path)) if prompt else None
