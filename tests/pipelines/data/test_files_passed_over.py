"""No file is passed over without a word: pictures of any format are used, and what is left out is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval.metrics.images import list_pictures
from segquant_bench.pipelines.config.arguments import check_text, quotes_hint, with_open_keys
from segquant_bench.pipelines.config.explain import explain
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.searchpath import check_search_path
from segquant_bench.pipelines.data.files import read_archive, read_prompt_files
from segquant_bench.pipelines.data.pictures import list_folder, write_pictures
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.cache import run_stage
from segquant_bench.pipelines.runtime.paths import CONF
from tests.pipelines.conftest import Tiny, compose_config
from tests.pipelines.layouts import write_files

NAMES = ("a.png", "b.PNG", "c.jpg", "d.JPG", "e.jpeg", "f.webp", "g.JpEg", "h.bmp", "i.tiff")


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """One-coloured pictures of all formats."""
    folder = tmp_path / "real"
    folder.mkdir()
    for level, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (20 * level,) * 3).save(folder / name)
    return folder


def _prompts(folder: Path) -> tuple[Path, Path]:
    for name in ("e.txt", "c.txt"):
        (folder / name).write_text(f"a {name}\n")
    return folder / "e.txt", folder / "c.txt"


def test_real_pictures_of_mixed_formats_are_all_used(
    real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_prompt_files(*_prompts(tmp_path), str(real)).real
    assert [picture.path.name for picture in found] == sorted(NAMES) and not caplog.records
    write_pictures(found, tmp_path / "out", (8, 8), None)
    levels = [int(np.asarray(Image.open(path)).mean().round()) for path in sorted((tmp_path / "out").iterdir())]
    assert levels == pytest.approx([20 * level for level in range(len(NAMES))], abs=2)


def test_what_is_left_out_is_named(real: Path, caplog: pytest.LogCaptureFixture) -> None:
    (real / "more").mkdir()
    for name in (".hidden.png", "notes.txt", "x\ny.csv"):
        (real / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert len(list_folder(real, "dataset.real")) == len(NAMES)
    (record,) = caplog.records
    assert record.message == (
        "dataset.real: 9 pictures are used, and 4 entries are left out (.hidden.png, more/, notes.txt, …)"
    )


def test_folders_without_pictures_and_broken_ones(real: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "inside").mkdir(parents=True)
    for folder, words in ((tmp_path / "deep", r"no folder of PNG or other pictures \(it holds inside/\)"),
                          (tmp_path / "deep" / "inside", "no folder of PNG or other pictures;"),
                          (tmp_path / "nowhere", "nowhere is no folder of pictures")):  # fmt: skip
        with pytest.raises(PipelineError, match=words):
            list_folder(folder, "dataset.real")
    (real / "broken.png").write_bytes(b"no picture")
    with pytest.raises(PipelineError, match=r"broken\.png cannot be read"):
        write_pictures(list_folder(real, "dataset.real"), tmp_path / "out", (8, 8), None)


def test_capitals_in_a_folder_of_generated_pictures(tmp_path: Path) -> None:
    for name in ("00000.png", "00001.PNG"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert [path.name for path in list_pictures(tmp_path, "generated")] == ["00000.png", "00001.PNG"]


def test_lines_of_other_splits_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"file": "a.png", "caption": "a", "split": split} for split in ("evaluation", "Evaluation", "train")]
    write_files(tmp_path, {"a.png": b"", "captions.jsonl": "\n".join(map(json.dumps, rows)).encode()}, "x.zip")
    with caplog.at_level(logging.WARNING):
        assert len(read_archive(tmp_path / "x.zip").evaluation) == 1
    assert "2 lines of" in caplog.text and "have other splits (Evaluation, train): left out" in caplog.text
    rows[0]["caption"] = " \t"
    write_files(tmp_path, {"a.png": b"", "captions.jsonl": json.dumps(rows[0]).encode()}, "y.zip")
    with pytest.raises(PipelineError, match="has a value that is no text"):
        read_archive(tmp_path / "y.zip")


@pytest.mark.parametrize("flag", ["--config-dir={}", "--config-dir {}", "-cd {}", "hydra.searchpath=[file://{}]"])
def test_a_configuration_of_the_name_of_one_of_ours(tmp_path: Path, flag: str) -> None:
    (tmp_path / "quantizer").mkdir()
    arguments = flag.format(tmp_path).split()
    (tmp_path / "quantizer" / "mine.yaml").write_text("a: 1\n")
    (tmp_path / "quantizer" / "rtn.yaml").write_bytes((CONF / "quantizer" / "rtn.yaml").read_bytes())
    check_search_path(arguments)  # a copy is no other
    (tmp_path / "quantizer" / "rtn.yaml").write_text("a: 1\n")
    words = r"rtn\.yaml has the name of a configuration of the benchmark.*for example quantizer/my_rtn\.yaml"
    with pytest.raises(PipelineError, match=words):
        check_search_path(arguments)


def test_two_configurations_of_one_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "quantizer").mkdir(parents=True)
        (tmp_path / name / "quantizer" / "mine.yaml").write_text(f"a: {name}\n")
    flags = [f"hydra.searchpath=[file://{tmp_path}/one]", "--config-dir", str(tmp_path / "two")]
    with pytest.raises(PipelineError, match="have one name, and only one of them would be read; rename one"):
        check_search_path(flags)
    check_search_path([*flags[:1], "--config-dir", str(tmp_path / "one")])


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("quantizer.overrides={*.norm1.linear:{precision:w8a8_dynamic}}", "quantizer.overrides",
         {"*.norm1.linear": {"precision": "w8a8_dynamic"}}),
        ("components={text_encoder:{seglinear:false}}", "components", {"text_encoder": {"seglinear": False}}),
        ("components.text_encoder.seglinear=false", "components", {"text_encoder": {"seglinear": False}}),
        ("stages={a:{b:1}}", "stages", {"a": {"b": 1}}),
        ("dataset.arguments={a:1}", "dataset.arguments", {"a": 1}),
        ("precision.arguments={a:1}", "precision.arguments", {"a": 1}),
        ("model.scheduler_settings={shift:2}", "model.scheduler_settings", {"shift": 2}),
        ("model.parts={controlnet:{kind:X,path:y}}", "model.parts.controlnet.path", "y"),
        ("+stages.a.b=1", "stages", {"a": {"b": 1}}),
        ("seed=3", "seed", 3),
    ],
)  # fmt: skip
def test_mappings_take_keys_without_a_plus(argument: str, key: str, value: object) -> None:
    from omegaconf import OmegaConf

    config = compose_config(with_open_keys([argument]))
    found = OmegaConf.select(config, key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


def test_where_no_plus_is_added_the_sentence_tells_of_it(tiny: Tiny, tmp_path: Path) -> None:
    from hydra.errors import HydraException

    for argument, words in (
        ("stages={a:{b:1}}", r"stages has no key 'a' yet; write \+\+stages\.a=VALUE"),
        ('quantizer.overrides={"*.x":{rank:1}}', r"keys in braces stand without quotes: 'quantizer\.overrides=\{\*\."),
        ("model={hight: 1}", "hight"),
    ):
        with pytest.raises(HydraException) as raised:
            compose_config([argument])
        with pytest.raises(PipelineError, match=words):
            raise PipelineError(explain(raised.value))
    assert quotes_hint("a={b: 'c'}") == "" and quotes_hint("a={'b': c}")
    assert validate(compose_config(tiny.overrides(tmp_path))).quantizer["overrides"] == {}


def test_arguments_that_are_no_text() -> None:
    check_text(["name=猫", "a='\u202e'"])
    with pytest.raises(PipelineError, match="is no UTF-8"):
        check_text(["seed=0", "name=\udcff"])


def test_files_of_stages_are_for_whom_the_umask_lets_in(tmp_path: Path) -> None:
    import os
    import tempfile

    import torch
    from safetensors.torch import save_file

    def compute(folder: Path) -> None:
        save_file({"a": torch.ones(2)}, folder / "a.safetensors")
        inside = Path(tempfile.mkdtemp(dir=folder))
        inside.rename(folder / "made")
        (folder / "made" / "b.txt").write_text("b")
        (folder / "made" / "b.txt").chmod(0o600)
        (folder / "link").symlink_to("nowhere")

    before = os.umask(0o027)
    try:
        done = run_stage("s", tmp_path / "cache", {}, compute)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in done.path.rglob("*") if not path.is_symlink()}
    assert modes == {"a.safetensors": 0o640, "made": 0o750, "b.txt": 0o640, "stage.json": 0o640}
