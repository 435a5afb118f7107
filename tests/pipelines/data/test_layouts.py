"""Published layouts and tables of one's own: small ones are read, wrong ones are named with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segquant_bench.pipelines.config.dataset import DatasetConfig
from segquant_bench.pipelines.config.sections import CalibrationConfig
from segquant_bench.pipelines.data.datasets import load_dataset
from segquant_bench.pipelines.data.files import Source, read_prompts, read_table
from segquant_bench.pipelines.data.layouts import read_coco, read_dci, read_mjhq, read_sdci
from segquant_bench.pipelines.data.pictures import missing, read_pictures
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.layouts import colour, write_coco, write_dci, write_files, write_mjhq, write_sdci


def _colours_match(source: Source, size: tuple[int, int] = (48, 40)) -> None:
    """Picture i has colour i."""
    images = read_pictures([entry.picture for entry in source.evaluation if entry.picture], size, None)
    assert len(images) == len(source.evaluation)
    for index, image in enumerate(images):
        assert abs(np.asarray(image).astype(int) - colour(index)).max() <= 3


@pytest.mark.parametrize(
    ("archive", "folder"),
    [(None, ""), (None, "mjhq30k_imgs/"), ("mjhq30k_imgs.zip", ""), ("mjhq30k_imgs.zip", "mjhq30k_imgs/")],
)
def test_mjhq_from_folder_and_zip(tmp_path: Path, archive: str | None, folder: str) -> None:
    meta = write_mjhq(tmp_path, archive=archive, folder=folder)
    source = read_mjhq(tmp_path, pictures=True)
    assert [(entry.key, entry.prompt) for entry in source.evaluation] == [
        (key, row["prompt"].strip()) for key, row in meta.items()
    ]
    assert source.calibration is None
    _colours_match(source)


def test_mjhq_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"no .*meta_data\.json; get it with `hf download playgroundai/MJHQ-30K"):
        read_mjhq(tmp_path, pictures=True)
    write_mjhq(tmp_path / "words", archive="elsewhere.zip")
    with pytest.raises(
        PipelineError, match=r"has no pictures \(mjhq30k_imgs\.zip, or animals/.*dataset\.pictures=false"
    ):
        read_mjhq(tmp_path / "words", pictures=True)
    assert {entry.picture for entry in read_mjhq(tmp_path / "words", pictures=False).evaluation} == {None}
    for text, words in (("[1]", "is not MJHQ's"), ("{", "is no JSON"), ('{"a": {"prompt": 3}}', "is not MJHQ's")):
        write_files(tmp_path / "bad", {"meta_data.json": text.encode()})
        with pytest.raises(PipelineError, match=words):
            read_mjhq(tmp_path / "bad", pictures=True)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_takes_the_caption_with_the_smallest_id(tmp_path: Path, year: str, archive: bool) -> None:
    write_coco(tmp_path, f"val{year}", 100, 5, archive=archive)
    write_coco(tmp_path, f"train{year}", 500, 4, pictures=False)
    source = read_coco(tmp_path, f"val{year}", f"train{year}", "first", pictures=True)
    assert [entry.key for entry in source.evaluation] == [f"{number:012d}" for number in range(100, 105)]
    assert source.evaluation[0].prompt == "Caption 0 of picture 100."
    assert source.evaluation[-1].prompt == "A man riding a wave."
    _colours_match(source)
    assert source.calibration is not None and {entry.picture for entry in source.calibration} == {None}
    joined = read_coco(tmp_path, f"val{year}", None, "all", pictures=False)
    assert joined.evaluation[1].prompt == " ".join(f"Caption {k} of picture 101." for k in range(3))
    assert joined.calibration is None


def test_coco_calibrates_on_captions_that_are_evaluated_nowhere(tmp_path: Path) -> None:
    write_coco(tmp_path, "val2017", 100, 5)
    write_coco(tmp_path, "train2017", 500, 7)
    config = DatasetConfig(
        name="coco", layout="coco", root=str(tmp_path), split="val2017", calibration_split="train2017",
        caption="first", size=2,
    )  # fmt: skip
    dataset = load_dataset(config, CalibrationConfig(name="uniform", prompts=4, held_out=2))
    calibration = {*dataset.calibration, *dataset.held_out}
    assert calibration == {f"Caption 0 of picture {number}." for number in range(500, 506)}
    assert len(dataset.read("held_out", [0, 1], (48, 40))) == 2
    with pytest.raises(PipelineError, match="7 calibration prompts .* has 6 left"):
        load_dataset(config, CalibrationConfig(name="uniform", prompts=5, held_out=2))


def test_coco_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"captions_val2014\.json; get annotations_trainval2014\.zip and val2014\.zip"
    ):
        read_coco(tmp_path, "val2014", None, "first", pictures=True)
    write_coco(tmp_path, "val2017", 1, 2, pictures=False)
    with pytest.raises(PipelineError, match=r"no captions of the split 'va12017' .* did you mean 'val2017'"):
        read_coco(tmp_path, "va12017", None, "first", pictures=True)
    with pytest.raises(PipelineError, match=r"has no pictures \(val2017\.zip, or val2017/\*\.jpg\)"):
        read_coco(tmp_path, "val2017", None, "first", pictures=True)
    for content in ({"images": []}, {"images": [{"id": 1}], "annotations": []}, [], {"images": [], "annotations": []}):
        write_files(tmp_path, {"annotations/captions_odd2017.json": json.dumps(content).encode()})
        with pytest.raises(PipelineError, match=r"captions_odd2017\.json (is not COCO's captions|has no captions)"):
            read_coco(tmp_path, "odd2017", None, "first", pictures=False)


@pytest.mark.parametrize("folder", ["sDCI", ""])
def test_sdci_as_svdquant_publishes_it(tmp_path: Path, folder: str) -> None:
    prompts = write_sdci(tmp_path, folder=folder or ".")
    source = read_sdci(tmp_path, pictures=True)
    assert {entry.key: entry.prompt for entry in source.evaluation} == prompts
    _colours_match(source, (60, 40))


def test_dci_as_its_authors_publish_it(tmp_path: Path) -> None:
    write_dci(tmp_path)
    summaries = read_dci(tmp_path, "summary", pictures=True)
    assert [entry.prompt for entry in summaries.evaluation] == [f"Summary {index}" for index in range(5)]
    _colours_match(summaries)
    short = read_dci(tmp_path, "short", pictures=False)
    assert [entry.prompt for entry in short.evaluation] == [f"Short {index}." for index in range(6)]
    assert read_dci(tmp_path, "extended", pictures=False).evaluation[2].prompt == "Short 2. More of 2."


def test_the_two_releases_of_dci_point_at_each_other(tmp_path: Path) -> None:
    write_dci(tmp_path / "authors")
    write_sdci(tmp_path / "svdquant")
    with pytest.raises(PipelineError, match=r"set dataset\.layout=dci"):
        read_sdci(tmp_path / "authors", pictures=True)
    with pytest.raises(PipelineError, match=r"set dataset\.layout=sdci"):
        read_dci(tmp_path / "svdquant", "summary", pictures=True)
    with pytest.raises(PipelineError, match=r"sDCI\.yaml; get it with `hf download mit-han-lab/svdquant-datasets"):
        read_sdci(tmp_path, pictures=True)
    with pytest.raises(PipelineError, match=r"complete has no JSON; get dci\.tar\.gz"):
        read_dci(tmp_path, "summary", pictures=True)
    write_dci(tmp_path / "plain", folder="annotations")
    assert len(read_dci(tmp_path / "plain", "short", pictures=True).evaluation) == 6
    write_dci(tmp_path / "single", n=1)
    with pytest.raises(PipelineError, match=r"no file of .* has a caption of the kind dataset\.caption=summary"):
        read_dci(tmp_path / "single", "summary", pictures=True)
    write_files(tmp_path / "bad", {"sDCI.yaml": b"a: [1", "complete/0.json": b"{}"})
    with pytest.raises(PipelineError, match="is no YAML"):
        read_sdci(tmp_path / "bad", pictures=True)
    with pytest.raises(PipelineError, match="is not DCI's"):
        read_dci(tmp_path / "bad", "short", pictures=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'caption,file_name\r\n"a cat, asleep",x/1.png\r\n"two\nlines",2.png\r\n'),
        ("t.csv", '\ufeffprompt,image\n"a cat, asleep",x/1.png\n"two\nlines",2.png\n'),
        ("t.jsonl", '{"text": "a cat, asleep", "file": "x/1.png"}\n\n{"text": "two\\nlines", "file": "2.png"}\n'),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    source = read_table(tmp_path / name, None, pictures=True)
    assert [(entry.key, entry.prompt) for entry in source.evaluation] == [
        ("x/1.png", "a cat, asleep"),
        ("2.png", "two\nlines"),
    ]
    assert [entry.picture.path for entry in source.evaluation] == [tmp_path / "x/1.png", tmp_path / "2.png"]
    assert read_table(tmp_path / name, tmp_path / "r", True).evaluation[1].picture.path == tmp_path / "r" / "2.png"
    assert len(missing([entry.picture for entry in source.evaluation])) == 2
    assert [entry.prompt for entry in read_prompts(tmp_path / name)] == ["a cat, asleep", "two\nlines"]


def test_tables_with_splits(tmp_path: Path) -> None:
    rows = [{"prompt": index, "split": "evaluation" if index % 3 else "calibration"} for index in range(6)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = read_table(path, None, pictures=False)
    assert [entry.prompt for entry in source.evaluation] == ["1", "2", "4", "5"]  # class labels are prompts too
    assert [entry.prompt for entry in source.calibration] == ["0", "3"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "", "has no rows"),
        ("t.csv", "promt,file\na,b\n", r"line 2 of table .* has no prompt; .* \(columns there: promt, file\)"),
        ("t.csv", "prompt,file\na,b\nc,\n", "line 3 of table .* names no picture"),
        ("t.csv", "prompt,file,split\na,b,test\n", "has a split 'test'"),
        ("t.csv", "prompt,file,split\na,b,evaluation\nc,d,\n", "has a split None"),
        ("t.jsonl", '{"prompt": "a"\n', "line 1 of table .* is no JSON"),
        ("t.jsonl", "3\n", "line 1 of table .* is no JSON object"),
        ("t.txt", "a\n", "neither .csv nor .jsonl"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PipelineError, match=words):
        read_table(tmp_path / name, None, pictures=True)


def test_prompt_files_that_cannot_be_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"list.yaml": b"- a\n- b\n", "odd.yaml": b"a: {b: c}\n", "none.yaml": b"", "none.txt": b"\n"})
    for name, words in (
        ("list.yaml", "must map names to prompts"),
        ("odd.yaml", "must map names to prompts"),
        ("none.yaml", "is empty"),
        ("none.txt", "is empty"),
        ("absent.txt", r"absent\.txt is not there; give the path"),
        ("absent.csv", r"absent\.csv is not there; give the path"),
    ):
        with pytest.raises(PipelineError, match=words):
            read_prompts(tmp_path / name)
