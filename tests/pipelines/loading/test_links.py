"""A copy of a model whose files are links: to nowhere is said so, elsewhere is followed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.files import check_directory
from segquant_bench.pipelines.runtime.paths import zoo_path


@pytest.mark.parametrize("name", ["emoji_flux"])
def test_a_copy_of_links_alone(name: str, tmp_path: Path) -> None:
    """As `cp -r` makes of a shipped pipeline, which shares files with its sibling."""
    source = zoo_path(name)
    assert any(path.is_symlink() for path in source.rglob("*"))
    shutil.copytree(source, tmp_path / "links", symlinks=True)
    with pytest.raises(PipelineError, match=r"is a link to .*which is not there; copy the model with .*cp -rL"):
        check_directory(tmp_path / "links")
    shutil.copytree(source, tmp_path / "whole")
    check_directory(tmp_path / "whole")


def test_other_links_are_no_matter(tmp_path: Path) -> None:
    shutil.copytree(zoo_path("emoji_sd3"), tmp_path / "model")
    (tmp_path / "model" / "notes.md").symlink_to("nowhere")
    check_directory(tmp_path / "model")
