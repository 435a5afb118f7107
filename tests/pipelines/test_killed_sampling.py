"""A run that is killed while it samples goes on behind its last batch, to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.pipelines.sampling import generate
from tests.pipelines.conftest import Command, Tiny


class Kill(BaseException):
    pass


@pytest.mark.parametrize("stage", [pytest.param("reference", marks=pytest.mark.slow), "generate"])
def test_one_batch_is_lost_at_most(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def arguments(cache: str) -> list[str]:
        return [*tiny.overrides(tmp_path / cache), "model.batch_size=1", "quantizer=rtn", "precision=w8a8_dynamic"]

    whole = command(*arguments("whole"))
    assert whole.code == 0, whole.err
    pictures = {path.name: path.read_bytes() for path in (whole.folder / "images").iterdir()}
    made: list[str] = []
    write = generate._write_picture

    def counted(picture: Any, path: Path, prompt: str) -> None:
        write(picture, path, prompt)
        if stage in str(path):
            made.append(path.name)
            if len(made) in (1, 3):
                raise Kill

    monkeypatch.setattr(generate, "_write_picture", counted)
    for _ in range(2):
        with pytest.raises(Kill):
            command(*arguments("killed"))
    again = command(*arguments("killed"))
    assert again.code == 0, again.err
    assert made == sorted(set(made)) and len(made) == 4  # no picture twice
    assert {path.name: path.read_bytes() for path in (again.folder / "images").iterdir()} == pictures
    metrics = [json.loads((run.folder / "results.json").read_text())["metrics"] for run in (whole, again)]
    assert metrics[0] == metrics[1]
