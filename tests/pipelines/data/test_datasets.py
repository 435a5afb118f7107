"""Subsets: drawn as papers draw them, calibration apart from evaluation, the same whatever their size."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.pipelines.config.dataset import DatasetConfig
from segquant_bench.pipelines.config.sections import CalibrationConfig
from segquant_bench.pipelines.data.datasets import Dataset, draw, load_dataset
from segquant_bench.pipelines.data.files import Entry
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import CONF
from segquant_bench.pipelines.zoo.data import ARCHIVE
from tests.pipelines.conftest import Command, Tiny
from tests.pipelines.layouts import colour, write_files, write_mjhq


def load(config: DatasetConfig, prompts: int = 4, held_out: int = 2, seed: int = 0) -> Dataset:
    return load_dataset(config, CalibrationConfig(name="uniform", prompts=prompts, held_out=held_out, seed=seed))


def mjhq(root: Path, **changes: object) -> DatasetConfig:
    return DatasetConfig(
        **{"name": "mjhq", "layout": "mjhq", "root": str(root), "draw": "shuffle", "size": 9, **changes}
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MJHQ's layout with 40 prompts."""
    folder = tmp_path_factory.mktemp("mjhq")
    write_mjhq(folder)
    return folder


def test_shuffle_is_svdquants_rule(root: Path) -> None:
    """Written as there: shuffle the names, keep the first, sort them."""
    meta = json.loads((root / "meta_data.json").read_text())
    names = list(meta.keys())
    random.Random(0).shuffle(names)
    names = sorted(names[:9])
    dataset = load(mjhq(root))
    assert dataset.evaluation == tuple(meta[name]["prompt"].strip() for name in names)
    assert [Path(picture.path).stem for picture in dataset.real] == names
    other = load(mjhq(root, seed=1))
    assert set(other.evaluation) != set(dataset.evaluation)


def test_pythons_generator_is_the_one_of_the_published_subset() -> None:
    """The permutation that every Python since 3.2 gives for seed 0: the published subsets rest on it."""
    order = list(range(10))
    random.Random(0).shuffle(order)
    assert order == [7, 8, 1, 5, 3, 4, 2, 0, 9, 6]


def test_first_and_permutation(root: Path) -> None:
    prompts = [row["prompt"].strip() for row in json.loads((root / "meta_data.json").read_text()).values()]
    assert load(mjhq(root, draw="first")).evaluation == tuple(prompts[:9])
    order = np.random.default_rng(3).permutation(40)
    permuted = load(mjhq(root, draw="permutation", seed=3))
    assert permuted.evaluation == tuple(prompts[index] for index in order[:9])
    assert load(mjhq(root, draw="permutation", seed=3, size=5)).evaluation == permuted.evaluation[:5]


@pytest.mark.parametrize("rule", ["permutation", "shuffle", "first"])
@pytest.mark.parametrize("size", [1, 7, 30])
def test_draws_split_without_remainder(rule: str, size: int) -> None:
    entries = [Entry(f"{index * 17 % 31:02d}", str(index)) for index in range(30)]
    chosen, left = draw(entries, DatasetConfig(name="x", layout="mjhq", root="x", draw=rule, size=size, seed=5))
    assert len(chosen) == size
    assert sorted(entry.key for entry in [*chosen, *left]) == sorted(entry.key for entry in entries)


@pytest.mark.parametrize("rule", ["permutation", "shuffle"])
def test_calibration_prompts_do_not_depend_on_the_size(root: Path, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segquant_bench.pipelines.data.datasets.RESERVE", 10)
    few, many = (load(mjhq(root, draw=rule, size=size)) for size in (3, 30))
    assert few.calibration == many.calibration and few.held_out == many.held_out
    assert few.record["evaluation_hash"] != many.record["evaluation_hash"]
    assert few.record["calibration_hash"] == many.record["calibration_hash"]


@pytest.mark.parametrize("rule", ["permutation", "shuffle", "first"])
def test_prompts_that_occur_twice_are_never_for_calibration(tmp_path: Path, rule: str) -> None:
    """A prompt of two pictures could be drawn for both sides."""
    rows = [{"prompt": f"prompt {index % 10 if index < 20 else index}", "file": f"{index}.png"} for index in range(40)]
    write_files(tmp_path, {"table.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    for seed in range(5):
        config = DatasetConfig(
            name="own",
            layout="folder",
            table=str(tmp_path / "table.jsonl"),
            draw=rule,
            size=10,
            seed=seed,
            pictures=False,
        )
        dataset = load(config, prompts=6, held_out=3, seed=seed)
        calibration = set(dataset.calibration) | set(dataset.held_out)
        assert len(calibration) == 9 and not calibration & set(dataset.evaluation)
        assert not calibration & {f"prompt {index}" for index in range(10)}


def test_hash_names_the_subset_and_nothing_else(root: Path, tmp_path: Path) -> None:
    write_mjhq(tmp_path / "elsewhere", archive="mjhq30k_imgs.zip")
    here, there = load(mjhq(root)), load(mjhq(tmp_path / "elsewhere"))
    assert here.record == there.record
    assert here.record == load(mjhq(root, pictures=False)).record
    assert {key: here.record[key] for key in ("name", "n", "of", "draw", "seed")} == {
        "name": "mjhq", "n": 9, "of": 40, "draw": "shuffle", "seed": 0,
    }  # fmt: skip
    meta = json.loads((root / "meta_data.json").read_text())
    drawn = sorted(random.Random(0).sample(list(meta), 40))  # any: all prompts change
    meta[drawn[0]]["prompt"] += " changed"
    write_files(tmp_path / "changed", {"meta_data.json": json.dumps(meta).encode()})
    changed = load(mjhq(tmp_path / "changed", pictures=False, size=30))
    assert changed.record["of"] == 40 and changed.record != load(mjhq(root, size=30)).record


def test_pictures_belong_to_their_prompts(root: Path) -> None:
    """Every picture has one colour, which its prompt's number gives."""
    dataset = load(mjhq(root))
    for split in ("evaluation", "calibration", "held_out"):
        prompts = getattr(dataset, split)
        indices = list(range(len(prompts)))[::-1]
        for index, image in zip(indices, dataset_read(dataset, split, indices), strict=True):
            number = int(prompts[index].split()[1])
            assert abs(np.asarray(image).astype(int) - colour(number)).max() <= 3
    assert len({dataset.pictures_digest(split) for split in ("evaluation", "calibration", "held_out")}) == 3


def dataset_read(dataset: Dataset, split: str, indices: list[int]) -> list[Image.Image]:
    images = dataset.read(split, indices, (48, 40))
    assert {image.size for image in images} == {(48, 40)}
    return images


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    write_mjhq(tmp_path / "mjhq")
    complete = load(mjhq(tmp_path / "mjhq"))
    complete.pictures["calibration"][1].path.unlink()
    dataset = load(mjhq(tmp_path / "mjhq"))  # the real pictures are all there, and only the calibration's is looked at
    with pytest.raises(PipelineError, match="1 of 4 calibration pictures of dataset mjhq are not there, for example"):
        dataset.read("calibration", [0], (48, 40))
    complete.real[0].path.unlink()
    with pytest.raises(PipelineError, match=r"1 of 9 real pictures .* or set dataset\.pictures=false"):
        load(mjhq(tmp_path / "mjhq"))
    without = load(mjhq(tmp_path / "mjhq", pictures=False))
    assert not without.has_real and without.digest is None
    with pytest.raises(PipelineError, match="9 of 9 evaluation prompts of dataset mjhq have no picture"):
        without.needed_pictures("evaluation")


def test_archives_keep_all_their_real_pictures(tiny: Tiny) -> None:
    """The small sets' pictures are too few for FID to draw from: all of the split are judged against."""
    dataset = load(DatasetConfig(name="tiny", archive=str(tiny.archive), size=3))
    assert len(dataset.evaluation) == 3 and len(dataset.real) == 8
    assert len(dataset.read("evaluation", [0, 1, 2], (32, 32))) == 3


def test_calibration_prompts_of_ones_own(root: Path, tmp_path: Path) -> None:
    """As SVDQuant calibrates: on captions of another set, {name: prompt} in YAML."""
    taken = load(mjhq(root)).evaluation[0]
    prompts = {f"{index:04d}": f"caption {index}" for index in range(8)} | {"0008": taken}
    lines = "\n".join(f"{key!r}: {json.dumps(prompt)}" for key, prompt in prompts.items())
    write_files(tmp_path, {"qdiff.yaml": lines.encode(), "list.txt": b"caption 0\n\n caption 1 \ncaption 2\n"})
    dataset = load(mjhq(root, calibration_prompts=str(tmp_path / "qdiff.yaml")), prompts=6, held_out=2)
    assert {*dataset.calibration, *dataset.held_out} == {f"caption {index}" for index in range(8)}
    with pytest.raises(PipelineError, match="10 calibration prompts"):
        load(mjhq(root, calibration_prompts=str(tmp_path / "qdiff.yaml")), prompts=6, held_out=4)
    with pytest.raises(PipelineError, match="calibration prompts of dataset mjhq have no picture"):
        dataset.needed_pictures("calibration")
    listed = load(mjhq(root, calibration_prompts=str(tmp_path / "list.txt")), prompts=2, held_out=1)
    assert {*listed.calibration, *listed.held_out} == {"caption 0", "caption 1", "caption 2"}


@pytest.mark.parametrize("kind", ["table", "files", "own"])
def test_calibration_splits_that_repeat_a_prompt(tmp_path: Path, kind: str) -> None:
    """Held-out prompts are never calibration prompts, however often the files give them."""
    rows = [{"prompt": prompt, "split": "calibration"} for prompt in "bbcb"] + [{"prompt": "a", "split": "evaluation"}]
    lines = "\n".join(map(json.dumps, rows if kind == "table" else rows[-1:])).encode()
    write_files(tmp_path, {"table.jsonl": lines, "a.txt": b"a\n", "b.txt": b"b\nb\nc\nb\n"})
    changes = {"layout": "folder", "table": str(tmp_path / "table.jsonl"), "pictures": False}
    if kind == "files":
        changes = {"evaluation_prompts": str(tmp_path / "a.txt")}
    if kind != "table":
        changes["calibration_prompts"] = str(tmp_path / "b.txt")
    config = DatasetConfig(**{"name": "own", **changes})
    for seed in range(4):
        dataset = load(config, prompts=1, held_out=1, seed=seed)
        assert {*dataset.calibration, *dataset.held_out} == {"b", "c"}
    with pytest.raises(PipelineError, match="3 calibration prompts .* has 2.*, repeats counted once; lower calib"):
        load(config, prompts=2, held_out=1)


def test_the_embedded_set_is_drawn_as_ever() -> None:
    """Published results rest on these prompts in this order."""
    config = DatasetConfig(name="emoji", archive=str(ARCHIVE), size=128)
    assert load(config, prompts=64, held_out=16).record == {
        "name": "emoji", "n": 128, "of": 2480, "draw": "permutation", "seed": 0, "evaluation_hash": "b17b12b81508f53c",
        "calibration_hash": "da7bb835dac05329", "held_out_hash": "dda1c1e8d8429bb5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 41}, "41 evaluation prompts were asked for, dataset mjhq has 40; lower dataset.size"),
        ({"size": 35}, "has 5 left that no evaluation prompt repeats; lower calibration.prompts or lower dataset.size"),
        ({"size": None}, "has 0 left that no evaluation prompt repeats; set dataset.size or set dataset.calibration_p"),
    ],
)
def test_more_prompts_than_there_are(root: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(PipelineError) as refused:
        load(mjhq(root, **changes))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "mjq"}, "did you mean 'mjhq'"),
        ({"root": None}, "dataset.layout=mjhq needs dataset.root=PATH"),
        ({"archive": "x.zip"}, "dataset.layout=mjhq does not read dataset.archive"),
        ({"split": "val2017"}, "does not read dataset.split"),
        ({"table": "x.csv"}, "does not read dataset.table"),
        ({"caption": "all"}, "has one caption a picture"),
        ({"draw": "shufle"}, "did you mean 'shuffle'"),
        ({"fit": "crp"}, "did you mean 'crop'"),
        ({"size": 0}, "dataset.size=0"),
        ({"layout": "coco"}, "dataset.caption='None'"),
        ({"layout": "coco", "caption": "first"}, "needs dataset.split"),
        ({"layout": "dci", "caption": "long"}, "dataset.caption='long' is not known"),
        ({"layout": "folder", "root": None}, "needs dataset.table=PATH"),
        ({"layout": None}, "names no prompts"),
    ],
)
def test_keys_that_make_no_sense(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PipelineError) as refused:
        DatasetConfig(**{"name": "some", "layout": "mjhq", "root": "somewhere", **changes})
    assert words in str(refused.value)


@pytest.mark.parametrize("path", sorted((CONF / "dataset").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_says_where_its_licence_is(path: Path) -> None:
    text = path.read_text()
    assert "# Licence: " in text
    assert "layout: folder" in text or "root:" not in text or "# Get: " in text


def test_a_run_on_a_published_layout(command: Command, tiny: Tiny, root: Path, tmp_path: Path) -> None:
    base = [item for item in tiny.overrides(tmp_path / "cache") if not item.startswith("dataset")]
    data = ["dataset=mjhq", f"dataset.root={root}", "dataset.size=4"]
    outcome = command(*base, *data, "quantizer=none", "metric.metrics=[psnr,fid_gt]")
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    assert results["subset"] == dict(load(mjhq(root, size=4)).record)
    assert "real" in results["stages"] and results["n_images"] == 4
    (real,) = (tmp_path / "cache" / "stage").glob("real-*[0-9a-f]")
    with Image.open(real / "images" / "00003.png") as picture:
        assert picture.size == (32, 32)
    missing = command(*base, *data, "dataset.pictures=false", "quantizer=none", "metric.metrics=[psnr,fid_gt]")
    assert missing.code == 1
    assert "fid_gt compares with real pictures" in missing.sentence and "metric.metrics=[psnr]" in missing.sentence
