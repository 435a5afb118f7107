"""Costs, hashes and records of where a run ran."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime import cost, digests, provenance
from segquant_bench.pipelines.runtime.meaning import code_digest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the high-water mark is reset on Linux only")
def test_peak_memory_is_that_of_the_block() -> None:
    with cost.measured() as large:
        block = bytearray(200 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
    del block
    with cost.measured() as small:
        sum(range(1000))
    assert large.peak_memory_mb > small.peak_memory_mb + 150
    assert large.seconds > 0


def test_tree_digest_follows_content_and_names_only(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "part").mkdir(parents=True)
    (first / "part" / "a.json").write_text("1")
    before = digests.tree_digest(first, (".json",))
    shutil.copytree(first, tmp_path / "second")
    assert digests.tree_digest(tmp_path / "second", (".json",)) == before
    (first / "README.md").write_text("not weights")
    (first / ".hidden").mkdir()
    (first / ".hidden" / "b.json").write_text("2")
    assert digests.tree_digest(first, (".json",)) == before
    (first / "part" / "a.json").rename(first / "part" / "b.json")
    assert digests.tree_digest(first, (".json",)) != before
    (tmp_path / "second" / "part" / "a.json").write_text("22")
    assert digests.tree_digest(tmp_path / "second", (".json",)) != before


def test_file_digest_is_sha256_and_trusts_the_hub_cache(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert digests.file_digest(file) == expected
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"large")
    (tmp_path / "link.safetensors").symlink_to(blob)
    assert digests.file_digest(tmp_path / "link.safetensors") == "ab" * 32


def test_source_digest_does_not_import() -> None:
    code = (
        "import sys; from segquant_bench.pipelines.runtime.meaning import code_digest; "
        "assert len(code_digest('segquant')) == 16; "
        "assert not {'segquant', 'torch', 'eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(PipelineError, match="no_such_package"):
        code_digest("no_such_package")


def test_records() -> None:
    versions = provenance.versions()
    assert {"python", "torch", "diffusers"} <= versions.keys()
    device = provenance.device_record("cpu")
    assert device["type"] == "cpu" and device["threads"] >= 1
    commit = provenance.git_commit()
    assert commit is None or len(commit.rstrip("+")) == 40
